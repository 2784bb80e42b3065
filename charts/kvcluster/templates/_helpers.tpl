{{/* Name of every object of the chart. One release per Kubernetes cluster or per set of namespaces, so the release names it. */}}
{{- define "kvcluster.fullname" -}}
{{- if eq .Release.Name .Chart.Name -}}
kvcluster-operator
{{- else -}}
{{- printf "%s-kvcluster-operator" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pods; they may never change. */}}
{{- define "kvcluster.selector" -}}
app.kubernetes.io/name: kvcluster-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object of the chart. */}}
{{- define "kvcluster.labels" -}}
{{ include "kvcluster.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: kvcluster
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* Name of the cluster-wide objects: two releases in two namespaces must not meet. */}}
{{- define "kvcluster.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "kvcluster.fullname" .) -}}
{{- end -}}
