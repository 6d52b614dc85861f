{{/* config.yaml: `.Values.config` and, for settings that it omits, the defaults for a pod. */}}
{{- define "keyturn.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $sidecar := eq .Values.mode "sidecar" -}}
{{- if not (hasKey $config "listen") -}}
{{- $_ := set $config "listen" (ternary "127.0.0.1:8080" "0.0.0.0:8080" $sidecar) -}}
{{- end -}}
{{- if not (hasKey $config "admin") -}}
{{- $_ := set $config "admin" "0.0.0.0:9090" -}}
{{- end -}}
{{- if not (hasKey $config "authentication") -}}
{{- $_ := set $config "authentication" (ternary "off" "required" $sidecar) -}}
{{- end -}}
{{- if not (or $sidecar (hasKey $config "lame_duck")) -}}
{{- $_ := set $config "lame_duck" "5s" -}}
{{- end -}}
{{- if and $sidecar (not (hasKey $config "anonymous")) -}}
{{- $_ := set $config "anonymous" (dict "name" "${KEYTURN_SERVICE:-local}") -}}
{{- end -}}
{{- $pools := default (dict "default" dict) $config.pools -}}
{{- range $name, $pool := $pools -}}
{{- $pool = default dict $pool -}}
{{- if not (or $pool.keys $pool.keys_dir) -}}
{{- $_ := set $pools $name (set $pool "keys_dir" (printf "/run/keyturn/keys/%s" $name)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config "pools" $pools -}}
{{- if .Values.tls.existingSecret -}}
{{- $tls := dict "cert" "/run/keyturn/tls/tls.crt" "key" "/run/keyturn/tls/tls.key" -}}
{{- if .Values.tls.clientCa }}{{- $_ := set $tls "client_ca" "/run/keyturn/tls/ca.crt" -}}{{- end -}}
{{- $_ := set $config "tls" $tls -}}
{{- end -}}
{{- if and (include "keyturn.redis" .) (not (dig "store" "url" "" $config)) -}}
{{- $_ := set $config "store" (merge (dict "url" "${KEYTURN_STORE_URL}") (default dict $config.store)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The name of the value of `redis` that is set; empty when none is. */}}
{{- define "keyturn.redis" -}}
{{- if .Values.redis.embedded }}embedded{{ else if .Values.redis.existingSecret }}existingSecret{{ else if .Values.redis.url }}url{{ end -}}
{{- end -}}

{{/* Non-empty when replicas share their tokens. */}}
{{- define "keyturn.shared" -}}
{{- $url := dig "store" "url" "" .Values.config -}}
{{- if or (include "keyturn.redis" .) (and $url (not (contains "memory:" $url))) }}yes{{ end -}}
{{- end -}}

{{/* Non-empty when the release may have more than one pod. */}}
{{- define "keyturn.many" -}}
{{- if .Values.autoscaling.enabled -}}
{{- if gt (int .Values.autoscaling.maxReplicas) 1 }}yes{{ end -}}
{{- else if gt (int .Values.replicas) 1 }}yes{{ end -}}
{{- end -}}

{{/* The pools whose keys are mounted, as a JSON list: those with a Secret in `keys`, and those without keys in `config`. */}}
{{- define "keyturn.mountedPools" -}}
{{- $names := list -}}
{{- range $name, $pool := (include "keyturn.config" . | fromYaml).pools -}}
{{- $given := get $.Values.keys $name | default dict -}}
{{- if or $given.existingSecret $given.values (eq (default "" $pool.keys_dir) (printf "/run/keyturn/keys/%s" $name)) -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* A duration of config.yaml in whole seconds, rounded up; empty when it is not a duration. */}}
{{- define "keyturn.seconds" -}}
{{- $text := toString . -}}
{{- if regexMatch "^[0-9]{1,9}(ms|s|m|h|d)$" $text -}}
{{- $number := regexFind "^[0-9]+" $text | int64 -}}
{{- $unit := regexFind "[a-z]+$" $text -}}
{{- if eq $unit "ms" -}}
{{- div (add $number 999) 1000 -}}
{{- else -}}
{{- mul $number (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) $unit) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The grace period before the kubelet kills the pod. For a sidecar it includes the application's own time. */}}
{{- define "keyturn.gracePeriod" -}}
{{- $config := include "keyturn.config" . | fromYaml -}}
{{- $before := ternary .Values.sidecar.applicationSeconds 0 (eq .Values.mode "sidecar") -}}
{{- $after := add (include "keyturn.seconds" (default "0s" $config.lame_duck)) (include "keyturn.seconds" (default "25s" $config.drain)) -}}
{{- add $before $after .Values.graceMarginSeconds -}}
{{- end -}}

{{/* The address of an entry of `listen`, which may be an object with `address` and `proxy_protocol`. */}}
{{- define "keyturn.addressOf" -}}
{{- if kindIs "map" . }}{{ .address }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* "true" when the first TCP address in `listen` expects the PROXY protocol, which the chart's own test does not speak. */}}
{{- define "keyturn.proxied" -}}
{{- $listen := (include "keyturn.config" . | fromYaml).listen -}}
{{- $first := list -}}
{{- range (kindIs "slice" $listen | ternary $listen (list $listen)) -}}
{{- if not (hasPrefix "unix:" (include "keyturn.addressOf" .)) }}{{- $first = append $first . -}}{{- end -}}
{{- end -}}
{{- with first $first }}{{ if kindIs "map" . }}{{ if eq (toString .proxy_protocol) "true" }}true{{ end }}{{ end }}{{ end -}}
{{- end -}}

{{/* The port of the first TCP address in `listen` (or `admin`); empty when there is none. */}}
{{- define "keyturn.portOf" -}}
{{- $ports := list -}}
{{- range (kindIs "slice" . | ternary . (list .)) -}}
{{- $address := include "keyturn.addressOf" . -}}
{{- if and (not (hasPrefix "unix:" $address)) (regexMatch ":[0-9]+$" $address) -}}
{{- $ports = append $ports (regexFind "[0-9]+$" $address | int) -}}
{{- end -}}
{{- end -}}
{{- if $ports }}{{ first $ports }}{{ end -}}
{{- end -}}

{{- define "keyturn.port" -}}
{{- include "keyturn.portOf" (include "keyturn.config" . | fromYaml).listen -}}
{{- end -}}

{{- define "keyturn.adminPort" -}}
{{- include "keyturn.portOf" (include "keyturn.config" . | fromYaml).admin -}}
{{- end -}}

{{- define "keyturn.scheme" -}}
{{- if or .Values.tls.existingSecret .Values.config.tls }}https{{ else }}http{{ end -}}
{{- end -}}

{{/* The ports of HTTP servers that a gateway connects to, as a JSON list: the upstream, issuers of JSON Web Tokens, and
     the trace collector. */}}
{{- define "keyturn.webPorts" -}}
{{- $urls := list (dig "upstream" "url" "" .Values.config) -}}
{{- range .Values.config.clients -}}
{{- if and .jwt (not .jwt.jwks_file) -}}
{{- $urls = append $urls (default .jwt.issuer .jwt.jwks_url) -}}
{{- end -}}
{{- end -}}
{{- with dig "traces" "endpoint" "" .Values.config -}}
{{- $urls = append $urls . -}}
{{- end -}}
{{- $ports := list -}}
{{- range $urls -}}
{{- $usual := ternary 80 443 (hasPrefix "http:" .) -}}
{{- $ports = append $ports (regexReplaceAll "^https?://[^/]*:([0-9]+)(/.*)?$" . "${1}" | atoi | default $usual) -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}

{{/* The ports of Redis, as a JSON list: those of the values and of the store's URL; empty without a shared store. */}}
{{- define "keyturn.redisPorts" -}}
{{- $ports := list -}}
{{- if include "keyturn.shared" . -}}
{{- if .Values.redis.embedded }}{{- $ports = list 6379 -}}{{- end -}}
{{- range .Values.networkPolicy.redisPorts }}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- range regexFindAll ":[0-9]+(?:[,/?]|$)" (default (dig "store" "url" "" .Values.config) .Values.redis.url) -1 -}}
{{- $ports = append $ports (regexFind "[0-9]+" . | int) -}}
{{- end -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}

{{/* A checksum of the settings whose change restarts pods: all of config.yaml, or only those that need a restart. Keys are
     not included, since they are reloaded. */}}
{{- define "keyturn.checksum" -}}
{{- $config := include "keyturn.config" . | fromYaml -}}
{{- if eq .Values.restartOnChange "needed" -}}
{{- $upstream := pick (default dict $config.upstream) "url" "key_header" "key_query" "max_connections" "settle_bound" -}}
{{- $inbound := pick (default dict $config.inbound) "socket_mode" -}}
{{- $log := pick (default dict $config.log) "format" -}}
{{- $tls := hasKey $config "tls" -}}
{{- $config = merge (dict "upstream" $upstream "inbound" $inbound "log" $log "tls" $tls) (pick $config "listen" "admin" "strict_certificates" "store" "traces") -}}
{{- end -}}
{{- printf "%s %s" (toJson $config) (toJson .Values.redis) | sha256sum -}}
{{- end -}}
