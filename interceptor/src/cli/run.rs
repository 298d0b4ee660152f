//! `interceptor run`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use super::values::{
    LogTarget, parse_cidr, parse_label, parse_log_target, parse_name, parse_namespace,
    parse_resolver,
};
use super::{DEFAULT_NAME, DRAIN_TIME};
use crate::policy::{Enforcement, OnLogLoss, OnLoss, OnRemoval, Outbound};

/// `interceptor run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  See what leaves (the default, ALLOW_ANY, refuses nothing):
    interceptor run -- curl https://www.google.com
  Allow only what the ServiceEntries in a directory name:
    interceptor run -f entries/ --outbound registry-only -- ./build.sh
  The same, with one network left alone:
    interceptor run -f entries/ --outbound registry-only --bypass 203.0.113.0/24 -- ./build.sh
  Cover a service that runs already, until Ctrl-C:
    interceptor run --cgroup system.slice/app.service --access-log /var/log/egress.log
  Replace that one by a newer version, or by other options, without a gap:
    interceptor run --take-over --cgroup system.slice/app.service --access-log /var/log/egress.log")]
pub struct Run {
    /// Istio resources, YAML or JSON: a file, or a directory of files. Changes to them are followed.
    /// Repeatable.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,

    /// What holds beside the resources.
    #[command(flatten)]
    pub mesh: MeshArgs,

    /// What happens to established connections that a change of policy no longer allows: they go
    /// on, or are ended [default: the InterceptorConfig's, else keep].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub on_policy_removal: Option<OnRemoval>,

    /// What may still go direct while interceptor is killed or hangs: what the kernel can judge by
    /// itself, or nothing but bypassed networks and resolvers. Established connections go on
    /// [default: the InterceptorConfig's, else direct-tier].
    #[arg(long, value_enum, value_name = "TIER")]
    pub on_daemon_loss: Option<OnLoss>,

    /// What happens while lines of the access log cannot be written: traffic goes on and lost lines
    /// are counted, or new connections and requests are refused [default: the InterceptorConfig's,
    /// else continue].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub on_log_loss: Option<OnLogLoss>,

    /// Whether connections that need no proxy go direct, judged by the kernel [default: the
    /// InterceptorConfig's fastPath, else true].
    #[arg(long, value_name = "true|false")]
    pub fast_path: Option<bool>,

    /// Refuse nothing: what policy would refuse goes where it was going, and its line in the access log says
    /// why it would be refused (audit:REASON in field 8).
    #[arg(long)]
    pub audit: bool,

    /// The workload.
    #[command(flatten)]
    pub workload: WorkloadArgs,

    /// Destinations that connect directly, accounted but not judged. Repeatable.
    #[arg(long, value_name = "CIDR", value_parser = parse_cidr)]
    pub bypass: Vec<IpNet>,

    /// DNS servers: the only ones that the workload may ask, and those that the proxy asks itself.
    /// Port 53 unless given; IPv6 with port as [2001:db8::1]:5353. Repeatable [default:
    /// nameservers of /etc/resolv.conf].
    #[arg(long = "resolver", value_name = "IP[:PORT]", value_parser = parse_resolver)]
    pub resolvers: Vec<SocketAddr>,

    /// A cgroup (v2) to cover: a path below its mount, or relative to it. Repeatable.
    #[arg(long = "cgroup", value_name = "PATH")]
    pub cgroups: Vec<PathBuf>,

    /// Let connections go on that covered programs had open before; they are logged once, and judged
    /// by nobody. Without it they are cut.
    #[arg(long)]
    pub keep_existing: bool,

    /// Run COMMAND in this network namespace: a name as `ip netns` knows it, or a path [default:
    /// the one that interceptor is started in]. Where a veth joins it to this one, the namespace is
    /// covered as a whole: nothing else in it opens connections either.
    #[arg(long, value_name = "NAME|PATH")]
    pub netns: Option<String>,

    /// Run COMMAND in a network namespace of its own, joined to this one by a veth pair: no packet
    /// leaves it that was not approved. Needs nft, and net.ipv4.ip_forward=1.
    #[arg(long, requires = "command", conflicts_with_all = ["netns", "cgroups"])]
    pub isolate: bool,

    /// Where the access log goes; - is standard output [default: the mesh config's, else standard
    /// error with COMMAND, standard output without].
    #[arg(long, value_name = "FILE|-", value_parser = parse_log_target)]
    pub access_log: Option<LogTarget>,

    /// Write no access-log line for bypassed connections.
    #[arg(long)]
    pub no_bypass_log: bool,

    /// Name of this interceptor, 1 to 32 of a-z, 0-9 and -: several can run side by side.
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,

    /// If an interceptor of this name runs already, take its place: programs are replaced in one step,
    /// listeners handed over, and it ends once its connections have. If none runs, just start.
    #[arg(long, conflicts_with = "command")]
    pub take_over: bool,

    /// When another one takes this one's place: how long open connections may go on by this one. Then
    /// they are cut.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_TIME, conflicts_with = "command",
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_time: u64,

    /// Leave COMMAND its capabilities (CAP_NET_RAW and CAP_SYS_ADMIN among them). A root COMMAND can
    /// then undo the interception.
    #[arg(long, requires = "command")]
    pub keep_caps: bool,

    /// When COMMAND ends, wait for what it left running instead of terminating it (SIGTERM, SIGKILL
    /// after 5 s).
    #[arg(long, requires = "command")]
    pub wait: bool,

    /// Print the kernel programs' own log to standard error (slow; for debugging).
    #[arg(long)]
    pub bpf_log: bool,

    /// The command to cover, after --. Runs as the user who called sudo.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What holds beside the resources.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct MeshArgs {
    /// Mesh config: bare, in an IstioOperator, or in the `istio` ConfigMap.
    #[arg(long, value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,

    /// What happens to destinations that no resource names [default: the mesh config's
    /// outboundTrafficPolicy, else allow-any].
    #[arg(long, value_enum, value_name = "POLICY")]
    pub outbound: Option<Outbound>,

    /// strict closes the gaps that Istio leaves open; istio is Istio to the letter [default: the
    /// InterceptorConfig's, else strict].
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub enforcement: Option<Enforcement>,
}

/// Whom the rules are for.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct WorkloadArgs {
    /// The workload's namespace: decides which resources it sees.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = parse_namespace)]
    pub namespace: String,

    /// The workload's labels: which resources select it. Repeatable, or separated by commas.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
}
