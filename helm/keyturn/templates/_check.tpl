{{/* `keyturn check` runs as a hook before an installation or upgrade, when the objects of the release are not there or old. So
     it has copies of the ConfigMap and of the Secrets that the chart makes, named `<name>-check…`. Templates that are
     given a root with `copy` refer to those, and do without a Secret that is missing, so that `check` says what it lacks. */}}

{{/* The suffixes of the objects that are made twice, as a JSON list. */}}
{{- define "keyturn.copies" -}}
{{- ternary (list "" "-check") (list "") .Values.check.enabled | toJson -}}
{{- end -}}

{{/* Annotations of the hook's objects: a list of the root and the weight. Helm makes the lightest first, and removes them all
     once the Job has ended. */}}
{{- define "keyturn.hook" -}}
helm.sh/hook: {{ include "keyturn.hookEvents" (first .) }}
helm.sh/hook-weight: {{ last . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* Objects of `extraObjects` are made after the check of an installation. Where the pod needs one that is no hook itself,
     only upgrades are checked. */}}
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
