{{/* The container, from `root`, `resources`, `ports` (callers connect over the network) and `preStop` (seconds). */}}
{{- define "keyturn.container" -}}
{{- $root := .root -}}
name: keyturn
image: {{ include "keyturn.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
command: [keyturn]
args: [serve, -c, /etc/keyturn/config.yaml]
{{- if .native }}
restartPolicy: Always
{{- end }}
securityContext:
  {{- include "keyturn.securityContext" $root | nindent 2 }}
{{- with include "keyturn.env" $root | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
{{- with $root.Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- if .ports }}
  - {name: keyturn, containerPort: {{ include "keyturn.port" $root }}, protocol: TCP}
  {{- end }}
  - {name: keyturn-admin, containerPort: {{ include "keyturn.adminPort" $root }}, protocol: TCP}
startupProbe:
  httpGet: {path: /healthz, port: keyturn-admin}
  {{- with $root.Values.probes.startup }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
livenessProbe:
  httpGet: {path: /healthz, port: keyturn-admin}
  {{- with $root.Values.probes.liveness }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or (eq $root.Values.mode "gateway") $root.Values.sidecar.readiness }}
readinessProbe:
  httpGet: {path: /readyz, port: keyturn-admin}
  {{- with $root.Values.probes.readiness }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- if .preStop }}
lifecycle:
  preStop:
    {{- if semverCompare ">=1.30-0" $root.Capabilities.KubeVersion.Version }}
    sleep: {seconds: {{ int64 .preStop }}}
    {{- else }}
    exec: {command: [sleep, {{ int64 .preStop | quote }}]}
    {{- end }}
{{- end }}
{{- with .resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "keyturn.mounts" $root | nindent 2 }}
{{- end -}}

{{/* Omits the fields without `userId`, so that the cluster chooses; an empty field would be read in different ways. */}}
{{- define "keyturn.user" -}}
runAsNonRoot: true
{{- with .Values.userId }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
{{- end }}
{{- end -}}

{{- define "keyturn.podSecurityContext" -}}
{{ include "keyturn.user" . }}
{{- with .Values.userId }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* All of it is set on the container, since a sidecar's pod belongs to the application. */}}
{{- define "keyturn.securityContext" -}}
{{ include "keyturn.user" . }}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "keyturn.env" -}}
{{- $redis := include "keyturn.redis" . -}}
{{- if eq .Values.mode "sidecar" }}
- name: KEYTURN_SERVICE
  value: {{ default .Release.Name .Values.sidecar.service | quote }}
{{- end }}
{{- if eq $redis "embedded" }}
- name: KEYTURN_STORE_URL
  value: redis://{{ include "keyturn.name" . }}-redis:6379/0
{{- else if $redis }}
- name: KEYTURN_STORE_URL
  valueFrom:
    secretKeyRef:
      name: {{ default (printf "%s%s-redis" (include "keyturn.name" .) (default "" .copy)) .Values.redis.existingSecret | quote }}
      key: {{ ternary .Values.redis.existingSecretKey "url" (eq $redis "existingSecret") | quote }}
      {{- if .copy }}
      optional: true
      {{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Folders are mounted, not single files, since only folders follow changes of a ConfigMap or Secret. */}}
{{- define "keyturn.mounts" -}}
- {name: keyturn-config, mountPath: /etc/keyturn, readOnly: true}
- {name: keyturn-tmp, mountPath: /tmp}
{{- range include "keyturn.mountedPools" . | fromJsonArray }}
- {name: keyturn-keys-{{ include "keyturn.part" . }}, mountPath: /run/keyturn/keys/{{ . }}, readOnly: true}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: keyturn-tls, mountPath: /run/keyturn/tls, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Modes are 0440 when the pod's file group is the container's, else 0444: in the pod of a sidecar, or when the cluster
     chooses the user. Only containers that mount a volume can read it. */}}
{{- define "keyturn.volumes" -}}
{{- $mode := ternary 288 292 (and (eq .Values.mode "gateway") (not (empty .Values.userId))) -}}
- name: keyturn-config
  configMap: {name: {{ printf "%s%s" (include "keyturn.name" .) (default "" .copy) | quote }}, defaultMode: {{ $mode }}}
{{- /* For request bodies. A pod that fills it is evicted, so it is a quarter larger than `spool_size`. */}}
{{- $spool := dig "inbound" "spool_size" 1073741824 .Values.config }}
- name: keyturn-tmp
  emptyDir: {{ if kindIs "string" $spool }}{}{{ else }}{sizeLimit: {{ add 16 (div (mul 5 (int64 $spool)) 4194304) }}Mi}{{ end }}
{{- range include "keyturn.mountedPools" . | fromJsonArray }}
- name: keyturn-keys-{{ include "keyturn.part" . }}
  secret:
    secretName: {{ include "keyturn.keysSecret" (dict "root" $ "pool" .) | quote }}
    defaultMode: {{ $mode }}
    {{- $given := get $.Values.keys . | default dict }}
    optional: {{ or (not (empty $.copy)) (not (or $given.existingSecret $given.values)) }}
{{- end }}
{{- with .Values.tls.existingSecret }}
- name: keyturn-tls
  secret: {secretName: {{ . | quote }}, defaultMode: {{ $mode }}{{ if $.copy }}, optional: true{{ end }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
