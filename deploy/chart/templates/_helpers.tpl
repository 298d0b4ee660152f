{{- define "interceptor.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* Labels of every object; takes the context and the component. */}}
{{- define "interceptor.labels" -}}
{{ include "interceptor.selector" . }}
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
helm.sh/chart: {{ .context.Chart.Name }}-{{ .context.Chart.Version }}
{{- end -}}

{{/* What selects a component's pods; never changes. */}}
{{- define "interceptor.selector" -}}
app.kubernetes.io/name: interceptor
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* What a pod of the agent's privileges has in its spec, beside its container. */}}
{{- define "interceptor.agentPod" -}}
serviceAccountName: interceptor-agent
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
# It joins pods' network namespaces from the node's, and dials for them from there.
hostNetwork: true
# cgroup.procs shows 0 for processes of other PID namespaces, and /proc/PID/ns/net of pods is what is
# joined. The agent also takes the cgroup namespace of process 1, to know its own cgroup by its path.
hostPID: true
# The node's own resolvers, whether or not the cluster's DNS runs.
dnsPolicy: Default
volumes:
  # Where the last good state outlives the pod and a reboot.
  - name: state
    hostPath: {path: {{ .Values.hostPaths.state }}, type: DirectoryOrCreate}
  # The control socket, for the plugin and for metrics; credentials, in memory.
  - name: run
    hostPath: {path: {{ .Values.hostPaths.run }}, type: DirectoryOrCreate}
  # Pinned programs and tables, which hold the pods while no agent runs.
  - name: bpffs
    hostPath: {path: {{ .Values.hostPaths.bpffs }}, type: Directory}
  # The pods' cgroups, to which programs are attached; in its own the agent makes two for itself.
  - name: cgroup
    hostPath: {path: {{ .Values.hostPaths.cgroup }}, type: Directory}
{{- if .Values.cni.enabled }}
  - name: cni-bin
    hostPath: {path: {{ .Values.cni.binDir }}, type: DirectoryOrCreate}
  - name: cni-conf
    hostPath: {path: {{ .Values.cni.confDir }}, type: DirectoryOrCreate}
  - name: netns
    hostPath: {path: /run/netns, type: DirectoryOrCreate}
{{- end }}
{{- end -}}

{{/* What a container of the agent's privileges has, beside its arguments and probes. */}}
{{- define "interceptor.agentContainer" -}}
image: {{ include "interceptor.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
{{- if .Values.apiServer.host }}
  - name: KUBERNETES_SERVICE_HOST
    value: {{ .Values.apiServer.host | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ .Values.apiServer.port | quote }}
{{- end }}
{{- if .Values.agent.log }}
  - name: INTERCEPTOR_LOG
    value: {{ .Values.agent.log | quote }}
{{- end }}
securityContext:
  privileged: false
  # Files of the node belong to root, and the control socket is root's.
  runAsUser: 0
  runAsGroup: 0
  # allowPrivilegeEscalation stays unset: with SYS_ADMIN the API takes it for a contradiction.
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      # setns(2) into pods' network namespaces and process 1's cgroup namespace; BPF tables by id.
      - SYS_ADMIN
      # Programs at cgroups and interfaces, ending sockets (sock_diag), looking at links and routes.
      - NET_ADMIN
      # Loading programs, making tables.
      - BPF
      # /proc/PID/ns/net of processes of other users, and of those with more capabilities.
      - SYS_PTRACE
  seccompProfile:
    type: RuntimeDefault
  {{- /* The field exists since 1.30; before, an annotation says it. */}}
  {{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
  # The runtimes' own profile forbids writing below /sys/fs/bpf.
  appArmorProfile:
    type: Unconfined
  {{- end }}
  {{- with .Values.agent.seLinuxType }}
  seLinuxOptions:
    type: {{ . }}
  {{- end }}
volumeMounts:
  - name: state
    mountPath: /var/lib/interceptor
  - name: run
    mountPath: /run/interceptor
  - name: bpffs
    mountPath: /sys/fs/bpf
  - name: cgroup
    mountPath: /sys/fs/cgroup
{{- if .Values.cni.enabled }}
  - name: cni-bin
    mountPath: /opt/cni/bin
  - name: cni-conf
    mountPath: /etc/cni/net.d
  # Namespaces of pods that are about to start, by the names that the runtime gives them.
  - name: netns
    mountPath: /run/netns
    mountPropagation: HostToContainer
{{- end }}
{{- end -}}

{{/* The agent's arguments, which `agent --check` takes as well. */}}
{{- define "interceptor.agentArgs" -}}
- --default-mode={{ .Values.agent.defaultMode }}
- --mesh-config-map={{ .Values.agent.meshConfigMap.namespace }}/{{ .Values.agent.meshConfigMap.name }}
- --cgroup-root={{ .Values.agent.cgroupRoot }}
{{- with .Values.agent.outbound }}
- --outbound={{ . }}
{{- end }}
{{- with .Values.agent.enforcement }}
- --enforcement={{ . }}
{{- end }}
{{- range .Values.agent.clusterDNS }}
- --cluster-dns={{ . }}
{{- end }}
{{- range .Values.agent.bypass }}
- --bypass={{ . }}
{{- end }}
{{- if .Values.cni.enabled }}
- --cni-bin-dir=/opt/cni/bin
- --cni-conf-dir=/etc/cni/net.d
{{- range append .Values.cni.exemptNamespaces .Release.Namespace | uniq }}
- --cni-exempt={{ . }}
{{- end }}
{{- end }}
{{- range .Values.agent.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Before 1.30 AppArmor is told by an annotation, which names the container. */}}
{{- define "interceptor.appArmorAnnotation" -}}
{{- if semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version -}}
container.apparmor.security.beta.kubernetes.io/agent: unconfined
{{- end -}}
{{- end -}}
