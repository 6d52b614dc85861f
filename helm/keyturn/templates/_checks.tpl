{{/* Rejects combinations of values that the schema permits but that cannot work, with a message that says why. */}}
{{- define "keyturn.checks" -}}
{{- $config := include "keyturn.config" . | fromYaml -}}
{{- include "keyturn.checkStore" . -}}
{{- include "keyturn.checkListeners" (dict "root" . "config" $config) -}}
{{- range $pool, $given := .Values.keys -}}
{{- if and $given $given.existingSecret $given.values -}}
{{- fail (printf "keys.%s has both existingSecret and values: keep one of them." $pool) -}}
{{- end -}}
{{- if and $given (or $given.existingSecret $given.values) (not (hasKey $config.pools $pool)) -}}
{{- fail (printf "keys.%s has no pool of that name in config.pools: add the pool." $pool) -}}
{{- end -}}
{{- end -}}
{{- $parts := list -}}
{{- range include "keyturn.mountedPools" . | fromJsonArray -}}
{{- if has (include "keyturn.part" .) (append $parts "") -}}
{{- fail (printf "The pool name config.pools.%s is empty or equal to another one as a Kubernetes name: rename the pool." .) -}}
{{- end -}}
{{- $parts = append $parts (include "keyturn.part" .) -}}
{{- end -}}
{{- include "keyturn.checkNames" . -}}
{{- include "keyturn.checkClients" $config -}}
{{- range list "drain" "lame_duck" -}}
{{- if not (include "keyturn.seconds" (default "0s" (get $config .))) -}}
{{- fail (printf "config.%s must be a plain duration, such as 25s: terminationGracePeriodSeconds is computed from it." .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.config.tls -}}
{{- fail "tls.existingSecret and config.tls are both given: keep one of them." -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCa needs tls.existingSecret, the Secret that holds ca.crt." -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host, the name under which callers reach it." -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs, the Gateways that it attaches to." -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas: lower it." -}}
{{- end -}}
{{- if eq .Values.mode "sidecar" -}}
{{- range list "autoscaling" "ingress" "httpRoute" -}}
{{- if (get $.Values .).enabled -}}
{{- fail (printf "%s.enabled needs mode: gateway; with mode: sidecar there is nothing that others could call." .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keyturn.checkNames" -}}
{{- $name := include "keyturn.name" . -}}
{{- if and (or (eq .Values.mode "gateway") .Values.redis.embedded) (not (regexMatch "^[a-z][a-z0-9-]*$" $name)) -}}
{{- fail (printf "%s is no name for a Service, which begins with a letter and has no dot: set fullnameOverride." $name) -}}
{{- end -}}
{{- range $value, $part := dict "extraEnv" "env" "extraVolumes" "volumes" "extraVolumeMounts" "mounts" -}}
{{- $seen := list -}}
{{- range include (printf "keyturn.%s" $part) $ | fromYamlArray -}}
{{- $named := ternary .mountPath .name (eq $part "mounts") -}}
{{- if has $named $seen -}}
{{- fail (printf "%s has %s, which is already defined: give it another name." $value $named) -}}
{{- end -}}
{{- $seen = append $seen $named -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keyturn.checkClients" -}}
{{- if eq (toString .authentication) "required" -}}
{{- range .clients -}}
{{- if not (or .token .token_sha256 .certificate .jwt) -}}
{{- fail (printf "The client %s of config.clients has no credential: write the token_sha256 that `keyturn token` prints, or token, certificate or jwt." .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keyturn.checkStore" -}}
{{- $redis := .Values.redis -}}
{{- if gt (len (compact (list $redis.url $redis.existingSecret (ternary "yes" "" $redis.embedded)))) 1 -}}
{{- fail "redis.url, redis.existingSecret and redis.embedded exclude each other: keep one of them." -}}
{{- end -}}
{{- $url := dig "store" "url" "" .Values.config -}}
{{- if and (include "keyturn.redis" .) $url (not (contains "${KEYTURN_STORE_URL" $url)) -}}
{{- fail "config.store.url and redis both name a store: take one of them out." -}}
{{- end -}}
{{- if and (eq .Values.mode "sidecar") (not (include "keyturn.shared" .)) (not .Values.sidecar.alone) -}}
{{- fail "Each pod with a sidecar is a replica, and without a shared store each would spend the whole budget: set redis.url, redis.existingSecret or redis.embedded, or, for one single pod, sidecar.alone." -}}
{{- end -}}
{{- if and (eq .Values.mode "gateway") (include "keyturn.many" .) (not (include "keyturn.shared" .)) -}}
{{- fail "More than one replica needs a shared store, or each would spend the whole budget: set redis.url, redis.existingSecret or redis.embedded, or one replica." -}}
{{- end -}}
{{- $surge := dig "rollingUpdate" "maxSurge" "25%" (default dict .Values.strategy) | toString -}}
{{- $beside := and .Values.strategy (ne (dig "type" "" (default dict .Values.strategy)) "Recreate") (not (has $surge (list "0" "0%"))) -}}
{{- if and (eq .Values.mode "gateway") $beside (not (include "keyturn.shared" .)) -}}
{{- fail "strategy lets a new pod run beside the old one, and with the memory store each would spend the whole budget: take it out, or set a Redis." -}}
{{- end -}}
{{- end -}}

{{- define "keyturn.checkListeners" -}}
{{- $loopback := "^(unix:|127\\.|localhost:|\\[::1\\]:)" -}}
{{- $listen := .config.listen | kindIs "slice" | ternary .config.listen (list .config.listen) -}}
{{- $sidecar := eq .root.Values.mode "sidecar" -}}
{{- $near := list -}}
{{- range $listen }}{{- if regexMatch $loopback (include "keyturn.addressOf" .) }}{{- $near = append $near . -}}{{- end -}}{{- end -}}
{{- if and $sidecar (lt (len $near) (len $listen)) -}}
{{- fail "config.listen of a sidecar must be loopback, such as 127.0.0.1:8080: it asks callers for no token." -}}
{{- end -}}
{{- if and (not $sidecar) (eq (len $near) (len $listen)) -}}
{{- fail "config.listen is loopback, which nobody outside the pod reaches: write 0.0.0.0:8080, or leave it out." -}}
{{- end -}}
{{- if or (not (kindIs "string" .config.admin)) (regexMatch $loopback (toString .config.admin)) -}}
{{- fail "config.admin must be reachable for the kubelet's probes: write 0.0.0.0:9090, or leave it out." -}}
{{- end -}}
{{- $port := include "keyturn.portOf" .config.listen -}}
{{- $admin := include "keyturn.portOf" .config.admin -}}
{{- if or (not $port) (not $admin) -}}
{{- fail "config.listen and config.admin need ports that are written out, such as 0.0.0.0:8080: the chart declares and probes them." -}}
{{- end -}}
{{- if eq $port $admin -}}
{{- fail "config.listen and config.admin have the same port: give each its own." -}}
{{- end -}}
{{- if and (not $sidecar) (eq (toString .config.authentication) "off") (not .config.allow_anonymous_network) -}}
{{- fail "config.authentication is off on a network listener, so anybody who reaches it can use the keys: remove it, or set config.allow_anonymous_network." -}}
{{- end -}}
{{- end -}}
