//! The command line: what can be asked for. Parsing only reads; it opens, resolves and changes
//! nothing.

mod agent;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net};

pub use self::agent::Agent;
use crate::policy::{Enforcement, OnLoss, OnRemoval, Outbound};

/// How the process ends. The numbers are those of sysexits(3) where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Success,
    /// Asked for something that is not there: no daemon of that name is running, say (1).
    Failure,
    /// The command line is wrong (64).
    Usage,
    /// A resource, mesh config or policy file is wrong (65).
    Resources,
    /// The kernel lacks a hook that enforcement needs (69).
    MissingKernelFeature,
    /// A fault of our own or an unexpected system error (70).
    Internal,
    /// A port, cgroup or name is in use or does not exist (73).
    Busy,
    /// Not enough privilege (77).
    Privilege,
    /// Ended by this signal: 128 + its number.
    Signal(i32),
    /// COMMAND's own status.
    Command(u8),
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
            Self::Resources => 65,
            Self::MissingKernelFeature => 69,
            Self::Internal => 70,
            Self::Busy => 73,
            Self::Privilege => 77,
            // Signals number 1..=64, so this stays below 255.
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Everything that the command line said.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "interceptor",
    version,
    about = "Catches, decides and logs every outbound connection of the programs it covers",
    after_help = "Exit status: COMMAND's own; 1 nothing there to act on; 64 usage; 65 bad \
                  resources; 69 missing kernel feature; 70 internal; 73 busy or missing port, \
                  cgroup or name; 77 privilege; 126 and 127 COMMAND cannot be run; 128+n by signal.",
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Verb {
    /// Intercept a command, or cgroups that exist, until it ends or is stopped.
    Run(Box<Run>),
    /// Start another command under an interceptor that runs already.
    #[command(after_help = "Example:\n  interceptor exec -- curl https://www.google.com")]
    Exec(Exec),
    /// Show what is attached where, how full the tables are, and the counters.
    Status(Status),
    /// Print the metrics of a running interceptor, in Prometheus's text format.
    Metrics(Metrics),
    /// Change or list the destinations that are not intercepted, while it runs.
    Bypass(Bypass),
    /// Tell what would happen to a connection, step by step, and why. Needs no privilege.
    Explain(Box<Explain>),
    /// Remove what a killed interceptor left: links, maps, cgroups and what still runs in them.
    Detach(Detach),
    /// Follow policy and this node's pods in the Kubernetes API, and keep the last good state. Covers
    /// no pod yet.
    Agent(Box<Agent>),
    /// Run policy tests: scenario files through the rules, without any network.
    Test(Test),
    /// Try every known way out from inside a covered room against canaries of its own. Needs root.
    Selftest(Selftest),
    /// The part of `selftest` that runs inside a room.
    #[command(hide = true)]
    SelftestInside(SelftestInside),
}

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
    interceptor run --cgroup system.slice/app.service --access-log /var/log/egress.log")]
pub struct Run {
    /// Istio resources, YAML or JSON: a file, or a directory of files. Changes to them are followed.
    /// Repeatable.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,

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

    /// What happens to established connections that a change of policy no longer allows: they go
    /// on, or are ended [default: the InterceptorConfig's, else keep].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub on_policy_removal: Option<OnRemoval>,

    /// What may still go direct while interceptor is killed or hangs: what the kernel can judge by
    /// itself, or nothing but bypassed networks and resolvers. Established connections go on
    /// [default: the InterceptorConfig's, else direct-tier].
    #[arg(long, value_enum, value_name = "TIER")]
    pub on_daemon_loss: Option<OnLoss>,

    /// Whether connections that need no proxy go direct, judged by the kernel [default: the
    /// InterceptorConfig's fastPath, else true].
    #[arg(long, value_name = "true|false")]
    pub fast_path: Option<bool>,

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

/// `interceptor exec`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Exec {
    /// Name of the running interceptor.
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,

    /// Leave the command its capabilities, as with `run --keep-caps`.
    #[arg(long)]
    pub keep_caps: bool,

    /// The command, after --. Runs as the user who called sudo.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `interceptor status`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Status {
    /// Name of the running interceptor.
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,

    /// For people or for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// `interceptor metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Metrics {
    /// Name of the running interceptor.
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,
}

/// `interceptor bypass`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  interceptor bypass add 203.0.113.0/24
  interceptor bypass list
A change takes effect on the next connect; connections that are open stay as they are, unless `run`
has --on-policy-removal cut: then `del` ends them.")]
pub struct Bypass {
    /// What to do with the list.
    #[command(subcommand)]
    pub change: BypassChange,

    /// Name of the running interceptor.
    #[arg(long, global = true, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,
}

/// What to do with the bypass list.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum BypassChange {
    /// Let this network connect directly from now on.
    Add {
        /// A network, or one address.
        #[arg(value_name = "CIDR", value_parser = parse_cidr)]
        cidr: IpNet,
    },
    /// Intercept this network again.
    Del {
        /// The network exactly as it was added.
        #[arg(value_name = "CIDR", value_parser = parse_cidr)]
        cidr: IpNet,
    },
    /// Print the networks, one a line.
    List,
}

/// `interceptor detach`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Detach {
    /// Name of the interceptor whose remains are removed.
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,
}

/// `interceptor test`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  interceptor test policy-tests/
  interceptor test --enforcement istio --junit results.xml mesh.yaml
Exit status: 0 all passed; 1 a case failed; 64 usage; 65 a file is no scenario file.")]
pub struct Test {
    /// Scenario files, or directories of them (not searched deeper).
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,

    /// The profile to test in.
    #[arg(long, value_enum, value_name = "PROFILE", default_value_t = Enforcement::Strict)]
    pub enforcement: Enforcement,

    /// Also write the results as JUnit XML to this file.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// `interceptor selftest`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  interceptor selftest
  interceptor selftest --only tls
  interceptor selftest --only T-7 --json
Makes two rooms (network namespaces and cgroups of its own), covers one with an interceptor of its own,
and sends nothing beyond them. Modes: container (root with a container's default capabilities), command
(root with what `run -- COMMAND` leaves), user (--uid, without capabilities).
Exit status: 0 nothing leaked, hung or failed; 1 something did; 64 usage; 70 the test itself failed.")]
pub struct Selftest {
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,

    /// Only those whose id contains this, or that belong to this threat (T-17).
    #[arg(long, value_name = "PATTERN")]
    pub only: Option<String>,

    /// The ordinary user.
    #[arg(long, value_name = "UID", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub uid: u32,

    /// Print ways and controls and try none. Needs no privilege.
    #[arg(long)]
    pub list: bool,
}

/// The part of `interceptor selftest` that runs inside a room.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SelftestInside {
    /// Where it is told what to do; without, it tries one way, given on standard input.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `interceptor explain`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:
  interceptor explain -f entries/ --outbound registry-only https://www.google.com
  interceptor explain -f entries/ --dst 192.0.2.7 db.example.com:5432
  interceptor explain --mesh-config mesh.yaml -f entries/ -o json h2c://grpc.example.com:50051
Schemes: http, https, h2c, tls, tcp (the client speaks first), server-first. Without one, port 443
means TLS, 80 and 8080 mean HTTP, any other tcp. The exit status says whether the question could be
answered, not what the answer is.")]
pub struct Explain {
    /// What the client connects to.
    #[arg(value_name = "URL|HOST:PORT")]
    pub target: String,

    /// Istio resources, YAML or JSON: a file, or a directory of files. Repeatable.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,

    /// Mesh config: bare, in an IstioOperator, or in the `istio` ConfigMap.
    #[arg(long, value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,

    /// As with `run`.
    #[arg(long, value_enum, value_name = "POLICY")]
    pub outbound: Option<Outbound>,

    /// As with `run`.
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub enforcement: Option<Enforcement>,

    /// As with `run`.
    #[arg(long, value_name = "true|false")]
    pub fast_path: Option<bool>,

    /// The address that the client dials [default: the target's own address, with --resolve; else
    /// one that no resource lists].
    #[arg(long, value_name = "IP[:PORT]")]
    pub dst: Option<String>,

    /// The workload.
    #[command(flatten)]
    pub workload: WorkloadArgs,

    /// Destinations that connect directly, as with `run`. Repeatable.
    #[arg(long, value_name = "CIDR", value_parser = parse_cidr)]
    pub bypass: Vec<IpNet>,

    /// Look names up (through /etc/resolv.conf); without, names stay names.
    #[arg(long)]
    pub resolve: bool,

    /// For people or for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Form of `status` and `explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned text.
    Text,
    /// One JSON object.
    Json,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output, written `-`.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

/// The name of an interceptor that was given none.
pub const DEFAULT_NAME: &str = "default";

/// Why there is nothing to run: help was asked for, or the command line is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseExit {
    /// [`Exit::Success`] for help and version, else [`Exit::Usage`].
    pub exit: Exit,
    /// What to print: on standard output when `exit` is success, else on standard error.
    pub text: String,
}

impl ParseExit {
    /// Prints the text where it belongs and gives the status to end with.
    pub fn print(&self) -> Exit {
        match self.exit {
            Exit::Success => print!("{}", self.text),
            _ => eprint!("{}", self.text),
        }
        self.exit
    }
}

impl From<clap::Error> for ParseExit {
    fn from(error: clap::Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Success,
            _ => Exit::Usage,
        };
        Self { exit, text: error.render().to_string() }
    }
}

/// Reads a command line; the first of `args` is the program's own name.
///
/// # Errors
/// Help or version was asked for, or the command line is wrong.
pub fn parse<I, T>(args: I) -> Result<Cli, ParseExit>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = Cli::try_parse_from(args)?;
    if let Verb::Run(run) = &cli.verb
        && run.command.is_empty()
        && run.cgroups.is_empty()
    {
        let message = "nothing to intercept: give a command after --, or --cgroup PATH";
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, message).into());
    }
    Ok(cli)
}

/// A network or one address. IPv4 written as IPv6 (`::ffff:192.0.2.0/120`) becomes IPv4, as
/// destinations do.
///
/// # Errors
/// Not a network, or bits are set beyond the prefix; says what to write instead.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            "not a network; write one like 203.0.113.0/24, 2001:db8::/32 or 203.0.113.7".to_owned()
        })?,
    };
    let trunc = net.trunc();
    if trunc != net {
        return Err(format!("{text} has host bits set; write {trunc}"));
    }
    let IpNet::V6(v6) = net else { return Ok(net) };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(prefix)) => {
            Ipv4Net::new(v4, prefix).map(IpNet::V4).map_err(|error| error.to_string())
        }
        _ => Ok(net),
    }
}

/// A DNS server: an address, with port 53 unless given.
fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| {
            "not an address; write one like 192.0.2.53, 192.0.2.53:5353, 2001:db8::53 or \
             [2001:db8::53]:5353"
                .to_owned()
        })?;
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("{text} cannot be a DNS server"));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// A name: it becomes part of paths, so nothing else may be in it.
fn parse_name(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(text.to_owned()) } else { Err("1 to 32 of a-z, 0-9 and -".to_owned()) }
}

/// A namespace, as Kubernetes names them.
fn parse_namespace(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits { Ok(text.to_owned()) } else { Err("1 to 63 of a-z, 0-9 and -".to_owned()) }
}

/// A label; its value may be empty.
fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not a label; write KEY=VALUE".to_owned()),
    }
}

/// A file, or `-`.
#[expect(clippy::unnecessary_wraps, reason = "the form that a clap value parser has")]
fn parse_log_target(text: &str) -> Result<LogTarget, String> {
    Ok(if text == "-" { LogTarget::Stdout } else { LogTarget::File(text.into()) })
}

#[cfg(test)]
mod tests;
