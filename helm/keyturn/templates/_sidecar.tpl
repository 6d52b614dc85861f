{{/* For the charts of applications. With this chart as a dependency and `keyturn: {mode: sidecar}` in their values, a pod
     gets a sidecar by two lines, `keyturn.sidecar` under `initContainers` and `keyturn.volumes` under `volumes`, each
     with `.Subcharts.keyturn`. */}}

{{/* A native sidecar: it is ready before the application starts, and is told to end after the application has ended. */}}
{{- define "keyturn.sidecar" -}}
{{- include "keyturn.checkSidecar" . -}}
{{- if semverCompare "<1.29-0" .Capabilities.KubeVersion.Version -}}
{{- fail "keyturn.sidecar needs Kubernetes 1.29 or newer: include keyturn.plainSidecar under `containers` instead." -}}
{{- end -}}
- {{ include "keyturn.container" (dict "root" . "resources" .Values.sidecar.resources "native" true) | indent 2 | trim }}
{{- end -}}

{{/* The same as one more container, for older clusters: all containers are told to end at once, so it goes on for
     `sidecar.applicationSeconds` before it drains. */}}
{{- define "keyturn.plainSidecar" -}}
{{- include "keyturn.checkSidecar" . -}}
- {{ include "keyturn.container" (dict "root" . "resources" .Values.sidecar.resources "preStop" .Values.sidecar.applicationSeconds) | indent 2 | trim }}
{{- end -}}

{{- define "keyturn.checkSidecar" -}}
{{- if ne .Values.mode "sidecar" -}}
{{- fail "A pod with a sidecar needs mode: sidecar in the values of the dependency keyturn." -}}
{{- end -}}
{{- end -}}
