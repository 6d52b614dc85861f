{{/* `keyturn check` runs as a hook before an installation or upgrade, when the release's objects are missing or outdated. It
     therefore uses copies of the chart's ConfigMap and Secrets, named `<name>-check…`. Templates whose root has `copy`
     refer to the copies and make Secrets optional, so that `check` itself reports a missing one. */}}

{{/* The suffixes of objects that have a copy, as a JSON list. */}}
{{- define "keyturn.copies" -}}
{{- ternary (list "" "-check") (list "") .Values.check.enabled | toJson -}}
{{- end -}}

{{/* Annotations of the hook's objects, from a list of the root and the weight. Helm creates objects in the order of their
     weights and removes them once the Job has completed. */}}
{{- define "keyturn.hook" -}}
helm.sh/hook: {{ include "keyturn.hookEvents" (first .) }}
helm.sh/hook-weight: {{ last . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* The events of the hook. Helm creates `extraObjects` after the hook of an installation, so installations are not checked
     when the pod needs one of them, unless that object is a hook itself. */}}
{{- define "keyturn.hookEvents" -}}
{{- $needed := pick .Values "extraEnv" "envFrom" "extraVolumes" "imagePullSecrets" "keys" "redis" "tls" | toJson -}}
{{- $events := "pre-install,pre-upgrade" -}}
{{- range .Values.extraObjects -}}
{{- $metadata := (tpl (toYaml .) $ | fromYaml).metadata | default dict -}}
{{- $hook := get ($metadata.annotations | default dict) "helm.sh/hook" | default "" -}}
{{- if and (contains (toJson $metadata.name) $needed) (not (contains "pre-install" $hook)) -}}
{{- $events = "pre-upgrade" -}}
{{- end -}}
{{- end -}}
{{- $events -}}
{{- end -}}
