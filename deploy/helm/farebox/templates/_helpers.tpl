{{- define "farebox.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "farebox.labels" -}}
app.kubernetes.io/name: farebox
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "farebox.selector" -}}
app.kubernetes.io/name: farebox
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "farebox.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "farebox.secret" -}}
{{ required "existingSecret: name a Secret with DATABASE_URL, REDIS_URL, FAREBOX_KEY_PEPPER, FAREBOX_ENGINE_KEY and FAREBOX_BOOTSTRAP_KEY" .Values.existingSecret }}
{{- end }}

{{- define "farebox.container" -}}
image: {{ include "farebox.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
envFrom:
  - secretRef:
      name: {{ include "farebox.secret" . }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "farebox.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "farebox.sharded" -}}
automountServiceAccountToken: false
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* vLLM drops what it is answering when it is told to end, and a group without one of its pods is none: all of them go
on until the gateways know and what was asked is answered. */}}
{{- define "farebox.sharded.lingers" -}}
lifecycle:
  preStop:
    exec:
      command: [sh, -c, sleep {{ sub .terminationGracePeriodSeconds 15 }}]
{{- end }}
