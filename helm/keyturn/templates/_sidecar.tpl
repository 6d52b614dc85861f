{{/* Templates for the charts of applications, which have this chart as a dependency with `mode: sidecar`. A pod includes
     `keyturn.sidecar` under `initContainers` and `keyturn.volumes` under `volumes`, both with `.Subcharts.keyturn`. */}}

{{/* A native sidecar: it starts before the application and is stopped after it. */}}
{{- define "keyturn.sidecar" -}}
{{- include "keyturn.checkSidecar" . -}}
{{- if semverCompare "<1.29-0" .Capabilities.KubeVersion.Version -}}
{{- fail "keyturn.sidecar needs Kubernetes 1.29 or newer: include keyturn.plainSidecar under `containers` instead." -}}
{{- end -}}
- {{ include "keyturn.container" (dict "root" . "resources" .Values.sidecar.resources "native" true) | indent 2 | trim }}
{{- end -}}

{{/* A plain container for clusters without native sidecars. All containers are stopped at once there, so it continues to
     serve for `sidecar.applicationSeconds` before it drains. */}}
{{- define "keyturn.plainSidecar" -}}
{{- include "keyturn.checkSidecar" . -}}
- {{ include "keyturn.container" (dict "root" . "resources" .Values.sidecar.resources "preStop" .Values.sidecar.applicationSeconds) | indent 2 | trim }}
{{- end -}}

{{- define "keyturn.checkSidecar" -}}
{{- if ne .Values.mode "sidecar" -}}
{{- fail "A pod with a sidecar needs mode: sidecar in the values of the dependency keyturn." -}}
{{- end -}}
{{- end -}}
