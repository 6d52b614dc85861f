{{/* The name of the release's objects: at most 52 characters, to leave room for a suffix. */}}
{{- define "keyturn.name" -}}
{{- $chart := default "keyturn" .Values.nameOverride -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- default $name .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "keyturn.selector" -}}
app.kubernetes.io/name: {{ default "keyturn" .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "keyturn.labels" -}}
{{ include "keyturn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (replace "+" "_" .Chart.Version) }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The release's labels and additional ones, which take precedence over `commonLabels`: a list of the root and the labels. */}}
{{- define "keyturn.labelsAnd" -}}
{{- merge (deepCopy (default dict (last .))) (include "keyturn.labels" (first .) | fromYaml) | toYaml -}}
{{- end -}}

{{- define "keyturn.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keyturn.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "keyturn.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* A pool's name as part of an object's name, which permits fewer characters. */}}
{{- define "keyturn.part" -}}
{{- regexReplaceAll "[^a-z0-9-]" (lower .) "-" | trunc 50 | trimAll "-" -}}
{{- end -}}

{{/* The Secret of a pool's keys: `pool` of `root`. */}}
{{- define "keyturn.keysSecret" -}}
{{- $given := get .root.Values.keys .pool | default dict -}}
{{- default (printf "%s%s-keys-%s" (include "keyturn.name" .root) (default "" .root.copy) (include "keyturn.part" .pool)) $given.existingSecret -}}
{{- end -}}
