{{/* Labels that select the pod of one part; they may never change. Call with (list $ "kafka"). */}}
{{- define "dev.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- end -}}

{{/* Labels of every object of one part. */}}
{{- define "dev.labels" -}}
{{- $root := index . 0 -}}
{{ include "dev.selector" . }}
app.kubernetes.io/part-of: kvcluster-dev
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* Security of a pod that runs as one user, whose volumes belong to it. Call with the user's id. */}}
{{- define "dev.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security of a container. */}}
{{- define "dev.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end -}}

{{/* The volume `data`, unless a claim template makes it. Call with (list $ "kafka"). */}}
{{- define "dev.dataVolume" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.storage "emptyDir" -}}
- name: data
  emptyDir: {}
{{- else if eq $root.Values.storage "hostPath" -}}
- name: data
  hostPath:
    path: {{ printf "%s/%s" (trimSuffix "/" $root.Values.hostPath.path) (index . 1) }}
    type: DirectoryOrCreate
{{- end -}}
{{- end -}}

{{/* Where the pod may stand. With hostPath: pins it, and gives the folder, which the kubelet makes as root, to its user. */}}
{{/* Call with (list $ user image). */}}
{{- define "dev.place" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.storage "hostPath" -}}
nodeSelector:
  kubernetes.io/hostname: {{ required "storage is hostPath: name the Kubernetes node in hostPath.node" $root.Values.hostPath.node }}
tolerations:
  - operator: Exists
    effect: NoSchedule
initContainers:
  - name: own-data
    image: {{ index . 2 | quote }}
    imagePullPolicy: {{ $root.Values.imagePullPolicy }}
    command: ["chown", "{{ index . 1 }}:{{ index . 1 }}", "/data"]
    securityContext:
      runAsNonRoot: false
      runAsUser: 0
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: ["ALL"]
        add: ["CHOWN"]
    volumeMounts:
      - name: data
        mountPath: /data
{{- else -}}
{{- with $root.Values.tolerations -}}
tolerations: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* With pvc: the claim template. Call with (list $ "2Gi"). */}}
{{- define "dev.claim" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.storage "pvc" -}}
# An uninstalled release leaves no claim; a deleted pod keeps it.
persistentVolumeClaimRetentionPolicy:
  whenDeleted: Delete
  whenScaled: Retain
volumeClaimTemplates:
  - metadata:
      name: data
    spec:
      accessModes: ["ReadWriteOnce"]
      {{- with $root.Values.pvc.storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ index . 1 }}
{{- end -}}
{{- end -}}
