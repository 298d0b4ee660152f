//! The command line: what can be asked for. Parsing only reads; it opens, resolves and changes
//! nothing.

mod agent;
mod cni;
mod gateway;
mod run;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

pub use self::agent::Agent;
pub use self::cni::Cni;
pub use self::gateway::Gateway;
use crate::policy::Enforcement;
pub use run::{MeshArgs, Run, WorkloadArgs};
pub(crate) use values::parse_name;
pub use values::{LogTarget, parse_cidr};

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
    /// Print the metrics of a running interceptor, in Prometheus's text format, or serve them.
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
    /// The way out for nodes whose `egressProxy` names it: takes in their streams, judges each again by
    /// the workload's policy, and dials.
    Gateway(Box<Gateway>),
    /// The CNI plugin, as a container runtime calls it: not for people.
    Cni(Cni),
    /// Run policy tests: scenario files through the rules, without any network.
    Test(Test),
    /// Try every known way out from inside a covered room against canaries of its own. Needs root.
    Selftest(Selftest),
    /// The part of `selftest` that runs inside a room.
    #[command(hide = true)]
    SelftestInside(SelftestInside),
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

    /// Say only whether every layer is attached and a policy in force; 1 if not, and what is amiss.
    #[arg(long, conflicts_with = "output")]
    pub ready: bool,

    /// With --ready: without the interface layer, too.
    #[arg(long, requires = "ready")]
    pub allow_single_layer: bool,

    /// With --ready: only if it is the one that runs in this container, and not one whose place it is to
    /// take.
    #[arg(long, requires = "ready")]
    pub here: bool,
}

/// `interceptor metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Metrics {
    /// Name of the running interceptor.
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,

    /// Serve them over HTTP, at /metrics, until it is ended. /healthz tells whether this answers.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
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

    /// Take the CNI plugin, too, out of the networks' configurations in this directory.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,

    /// And out of this directory of plugins.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
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

    /// What holds beside the resources.
    #[command(flatten)]
    pub mesh: MeshArgs,

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

/// The name of an interceptor that was given none.
pub const DEFAULT_NAME: &str = "default";

/// The name of an agent that was given none.
pub const AGENT_NAME: &str = "agent";

/// How long connections may go on by a daemon whose place was taken, in seconds: Envoy's and Istio's
/// time for a hot restart.
const DRAIN_TIME: u64 = 45;

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

#[cfg(test)]
mod tests;
