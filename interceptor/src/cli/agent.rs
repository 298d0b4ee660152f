//! `interceptor agent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use super::values::{
    LogTarget, parse_cidr, parse_log_target, parse_name, parse_namespace, parse_resolver,
};
use super::{AGENT_NAME, DRAIN_TIME};

use crate::agent::Name;
use crate::agent::pods::Mode;
use crate::policy::{Enforcement, Outbound};
use crate::workloads::annotations::CaptureLists;

/// `interceptor agent`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  What would be covered on a node, and by which policy:
    interceptor agent --node node-7 --once
  Whether a node and a cluster have what it needs:
    interceptor agent --node node-7 --check
  Cover the node's pods:
    interceptor agent --node node-7
  End that, once it is stopped; a signal alone leaves everything attached:
    interceptor detach --name agent
The API server is the one of the pod's service account, or of $KUBECONFIG or ~/.kube/config.
Exit status: 0 ended by a signal, all was answered with --once, or all is there with --check; 1 the
API server does not answer, or something is missing; 64 usage; 65 the resources cannot be used; 69 the
kernel lacks something; 70 internal; 73 an agent of this name runs; 77 not root.")]
pub struct Agent {
    /// The node whose pods are meant, as its Node object is called.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = parse_node)]
    pub node: String,

    /// What becomes of pods where neither they nor their namespace have the label
    /// egress.interceptor.io/mode.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Disabled)]
    pub default_mode: Mode,

    /// The ConfigMap with the mesh config.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "istio-system/istio", value_parser = parse_object)]
    pub mesh_config_map: Name,

    /// As with `run`.
    #[arg(long, value_enum, value_name = "POLICY")]
    pub outbound: Option<Outbound>,

    /// As with `run`.
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub enforcement: Option<Enforcement>,

    /// Where the last good state is kept: policy.yaml and workloads.yaml.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/interceptor")]
    pub state_dir: PathBuf,

    /// Where secrets.yaml is kept; in memory, so that no key is on a disk.
    #[arg(long, value_name = "DIR", default_value = "/run/interceptor/agent")]
    pub secrets_dir: PathBuf,

    /// kubelet's --cgroup-root.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub cgroup_root: PathBuf,

    /// A name server that the agent asks itself. Port 53 unless given. Repeatable [default: nameservers
    /// of --resolv-conf].
    #[arg(long = "resolver", value_name = "IP[:PORT]", value_parser = parse_resolver)]
    pub resolvers: Vec<SocketAddr>,

    /// A name server that kubelet gives pods whose dnsPolicy is ClusterFirst, as its clusterDNS.
    /// Repeatable [default: the addresses of the Service kube-system/kube-dns].
    #[arg(long = "cluster-dns", value_name = "IP[:PORT]", value_parser = parse_resolver)]
    pub cluster_dns: Vec<SocketAddr>,

    /// The node's resolv.conf, as kubelet's resolvConf: what pods get whose dnsPolicy is Default.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,

    /// Let connections to this network go direct, whichever pod's. Repeatable.
    #[arg(long, value_name = "CIDR", value_parser = parse_cidr)]
    pub bypass: Vec<IpNet>,

    /// What of pods' traffic is captured where their annotations do not say, as Istio's install-time value
    /// global.proxy.KEY: includeIPRanges, excludeIPRanges, includeOutboundPorts or excludeOutboundPorts.
    /// A pod's annotation replaces its list. Repeatable, once for each KEY [default: everything].
    #[arg(long, value_name = "KEY=LIST", value_parser = parse_capture)]
    pub capture: Vec<(String, String)>,

    /// Where access-log lines go: `stdout`, or a file [default: what the mesh config and Telemetry
    /// say, else standard output].
    #[arg(long, value_name = "TARGET", value_parser = parse_log_target)]
    pub access_log: Option<LogTarget>,

    /// Name of this interceptor, 1 to 32 of a-z, 0-9 and -.
    #[arg(long, default_value = AGENT_NAME, value_parser = parse_name)]
    pub name: String,

    /// If an agent of this name runs already, take its place: programs are replaced in one step, listeners
    /// handed over, and it ends once its connections have. If none runs, just start.
    #[arg(long)]
    pub take_over: bool,

    /// When another agent takes this one's place: how long open connections may go on by this one. Then
    /// they are cut.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_TIME,
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_time: u64,

    /// Put the CNI plugin at the end of the network whose configuration is in this directory, as
    /// /etc/cni/net.d, so that pods are judged from their first packet on.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,

    /// Where the container runtime looks for plugins, as /opt/cni/bin.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,

    /// A namespace whose pods start without the agent, whatever their labels say. Repeatable.
    #[arg(long = "cni-exempt", value_name = "NAMESPACE", default_value = "kube-system", value_parser = parse_namespace)]
    pub cni_exempt: Vec<String>,

    /// Wait until everything is known, print the node's pods, and end. Keeps nothing.
    #[arg(long)]
    pub once: bool,

    /// Look whether this machine and this cluster have what the agent needs, say what is missing and
    /// how to mend it, and end. Changes nothing.
    #[arg(long, conflicts_with = "once")]
    pub check: bool,
}

impl Agent {
    /// What is captured of pods without annotations (CAP-3).
    pub fn capture_lists(&self) -> CaptureLists {
        // Each was read when the command line was.
        CaptureLists::from_values(&self.capture.iter().cloned().collect()).unwrap_or_default()
    }
}

fn parse_capture(text: &str) -> Result<(String, String), String> {
    let Some((key, list)) = text.split_once('=') else { return Err("write KEY=LIST".to_owned()) };
    if !CaptureLists::VALUES.contains(&key) {
        return Err(format!("KEY is one of {}", CaptureLists::VALUES.join(", ")));
    }
    let value = (key.to_owned(), list.to_owned());
    CaptureLists::from_values(&[value.clone()].into()).map_err(|bad| bad.message)?;
    Ok(value)
}

/// A node's name goes into a field selector, where other characters mean something.
fn parse_node(text: &str) -> Result<String, String> {
    match Name::is_plain(text) {
        true => Ok(text.to_owned()),
        false => Err("1 to 253 of a-z, 0-9, - and .".to_owned()),
    }
}

fn parse_object(text: &str) -> Result<Name, String> {
    match text.split_once('/') {
        Some((namespace, name)) if Name::is_plain(namespace) && Name::is_plain(name) => {
            Ok(Name { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("write NAMESPACE/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Exit, Verb, parse};
    use super::*;

    fn agent(line: &str) -> Result<Agent, Exit> {
        match parse(line.split_whitespace()) {
            Ok(Cli { verb: Verb::Agent(agent) }) => Ok(*agent),
            Ok(other) => panic!("{line}: {other:?}"),
            Err(error) => Err(error.exit),
        }
    }

    #[test]
    fn options() {
        let all = agent(
            "interceptor agent --node n-1.example --default-mode audit --mesh-config-map a/b \
             --outbound registry-only --enforcement istio --state-dir s --secrets-dir t \
             --cgroup-root /kubelet --once",
        )
        .expect("accepted");
        assert_eq!((all.node.as_str(), all.default_mode), ("n-1.example", Mode::Audit));
        assert_eq!(all.mesh_config_map.to_string(), "a/b");
        assert_eq!(
            (all.outbound, all.enforcement),
            (Some(Outbound::RegistryOnly), Some(Enforcement::Istio))
        );
        assert_eq!((all.state_dir, all.secrets_dir), ("s".into(), "t".into()));
        assert!(all.once && all.cgroup_root == std::path::Path::new("/kubelet"));
        let plain = agent("interceptor agent --node n").expect("accepted");
        assert_eq!((plain.default_mode, plain.once), (Mode::Disabled, false));
        assert_eq!(plain.mesh_config_map.to_string(), "istio-system/istio");
    }

    #[test]
    fn cap_3_install_time_values() {
        let given = agent(
            "interceptor agent --node n --capture includeIPRanges=10.0.0.0/8,192.0.2.0/24 \
             --capture excludeOutboundPorts=25",
        )
        .expect("accepted");
        let lists = given.capture_lists();
        assert_eq!(lists.exclude_ports, [25]);
        assert!(lists.include_ranges.hold("10.1.1.1".parse().expect("an address")));
        assert!(!lists.include_ranges.hold("198.51.100.1".parse().expect("an address")));
        let none = agent("interceptor agent --node n").expect("accepted");
        assert_eq!(none.capture_lists(), CaptureLists::default());
        for wrong in ["excludeIPRanges", "excludeIPRanges=*", "excludeInboundPorts=1"] {
            let line = format!("interceptor agent --node n --capture {wrong}");
            assert_eq!(agent(&line), Err(Exit::Usage), "{line}");
        }
    }

    #[test]
    fn what_would_mean_something_else_in_a_selector() {
        for line in [
            "interceptor agent --node a,b",
            "interceptor agent --node a=b",
            "interceptor agent --node N",
            "interceptor agent --node n --mesh-config-map istio",
            "interceptor agent --node n --mesh-config-map a/b/c",
            "interceptor agent --node n --default-mode off",
        ] {
            assert_eq!(agent(line), Err(Exit::Usage), "{line}");
        }
    }
}
