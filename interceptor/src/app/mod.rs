//! The composition root: the command line to running parts, and errors to exit statuses.

mod agent;
mod agent_check;
mod begin;
mod by_cgroup;
mod cni;
mod command;
mod cover;
mod covered;
mod cut;
mod direct;
mod enrol;
mod existing;
mod explain;
mod gateway;
mod handler;
mod pod_logs;
mod pods;
mod reload;
mod report;
mod resolv_conf;
mod run;
mod sandboxes;
mod scope;
mod selftest;
mod signals;
mod start;
mod stop;
mod tenant;
mod test;
mod wanted;
mod watchdog;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{self, AdminError, client, ready};
use crate::cli::{self, BypassChange, Cli, Exit, Output, Verb};
use crate::cni::InstallError;
use crate::kernel::{KernelError, PinError, Pins};
use crate::memory;
use crate::netns::{IsolateError, Isolated};
use crate::selftest::SelftestError;
use crate::workloads::cgroup::CgroupError;
use crate::workloads::cgroupns::join_hosts;
use crate::workloads::command::LaunchError;
use crate::workloads::session::Session;

use self::signals::Signals;

/// SIGTERM to SIGKILL for what remains in a covered cgroup.
const GRACE: Duration = Duration::from_secs(5);

/// Everything that can end the program early, with its exit status.
#[derive(Debug, thiserror::Error)]
enum AppError {
    #[error("{0}")]
    Resources(String),
    #[error("{0}")]
    Usage(String),
    #[error("needs root: {0}")]
    Root(&'static str),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Exec(#[from] admin::exec::ExecError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("the CNI plugin: {0}")]
    Install(#[from] InstallError),
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    #[error(transparent)]
    Selftest(#[from] SelftestError),
    #[error("the Kubernetes API cannot be used: {0}")]
    Cluster(String),
    #[error("{what}: {source}")]
    Busy { what: String, source: std::io::Error },
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
}

impl AppError {
    fn exit(&self) -> Exit {
        match self {
            Self::Resources(_) => Exit::Resources,
            Self::Usage(_) => Exit::Usage,
            Self::Root(_) | Self::Kernel(KernelError::Privilege(_)) => Exit::Privilege,
            Self::Kernel(KernelError::Missing(_)) | Self::Isolate(_) => Exit::MissingKernelFeature,
            Self::Kernel(KernelError::Cgroup(error)) | Self::Cgroup(error) => error.exit(),
            Self::Launch(error) => error.exit(),
            Self::Admin(error) => error.exit(),
            Self::Exec(error) => error.exit(),
            Self::Selftest(error) => error.exit(),
            Self::Cluster(_) => Exit::Failure,
            Self::Busy { .. } => Exit::Busy,
            Self::Kernel(_) | Self::Pin(_) | Self::Install(_) | Self::System { .. } => {
                Exit::Internal
            }
        }
    }
}

/// An I/O error with what was being done.
fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> AppError {
    let what = what.into();
    move |source| AppError::System { what, source }
}

/// The whole program.
pub fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| crate::cni::is_called_by(&name)) {
        return cni::run().into();
    }
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(early) => return early.print().into(),
    };
    if let Verb::SelftestInside(args) = &cli.verb {
        // Before there is a second thread: it makes namespaces that a process of many cannot.
        return match crate::selftest::inside(args.socket.as_deref()) {
            Ok(()) => Exit::Success.into(),
            Err(error) => {
                eprintln!("interceptor: {error}");
                Exit::Internal.into()
            }
        };
    }
    if let Verb::Cni(_) = &cli.verb {
        return cni::run().into();
    }
    init_log(&cli);
    if let Verb::Agent(_) = &cli.verb
        && let Err(error) = join_hosts()
    {
        // Before there is a second thread, too. Where it matters, our own cgroup is not found, which is
        // said, and where process 1 is not the host's, it does not matter.
        tracing::debug!("cannot join the host's cgroup namespace: {error}");
    }
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(memory::before_rest)
        .build()
        .map_err(system("cannot start the runtime"))
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(cli));
            // Tasks still open (idle relays) end here, each with its record.
            runtime.shutdown_timeout(Duration::from_millis(200));
            result
        });
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("interceptor: {error}");
            error.exit().into()
        }
    }
}

fn init_log(cli: &Cli) {
    use tracing_subscriber::EnvFilter;
    let bpf_log = matches!(&cli.verb, Verb::Run(run) if run.bpf_log);
    // The reader of netlink warns of every attribute that is younger than itself, and of who does not
    // listen any more. The Kubernetes client
    // shows answers that it cannot read, Secrets included; the agent says itself what goes wrong.
    let mut default =
        "warn,netlink_packet_route=error,netlink_proto=error,kube_client=off,kube_runtime=off"
            .to_owned();
    if bpf_log {
        default.push_str(",interceptor_ebpf=debug");
    }
    let filter = EnvFilter::try_from_env("INTERCEPTOR_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

async fn dispatch(cli: Cli) -> Result<Exit, AppError> {
    match cli.verb {
        Verb::Run(run) => run::run(*run).await,
        Verb::Exec(exec) => Ok(admin::exec::run(&exec).await?),
        Verb::Status(status) => {
            let report = client::status(&status.name)?;
            if status.ready {
                let mut amiss = ready::amiss(&report, status.allow_single_layer);
                if status.here && !client::is_here(&status.name)? {
                    amiss.push("another one runs yet, whose place is to be taken".to_owned());
                }
                amiss.iter().for_each(|what| println!("{what}"));
                return Ok(if amiss.is_empty() { Exit::Success } else { Exit::Failure });
            }
            match status.output {
                Output::Text => print!("{report}"),
                Output::Json => {
                    println!(
                        "{}",
                        report.to_json().map_err(|error| system("status")(error.into()))?
                    );
                }
            }
            Ok(Exit::Success)
        }
        Verb::Metrics(cli::Metrics { name, listen: Some(address) }) => {
            serve_metrics(name, address).await
        }
        Verb::Metrics(metrics) => {
            let report = client::status(&metrics.name)?;
            let text = admin::metrics::render(&report);
            print!("{}", text.map_err(|error| system("metrics")(std::io::Error::other(error)))?);
            Ok(Exit::Success)
        }
        Verb::Bypass(bypass) => {
            match bypass.change {
                BypassChange::Add { cidr } => client::bypass_add(&bypass.name, cidr)?,
                BypassChange::Del { cidr } => client::bypass_del(&bypass.name, cidr)?,
                BypassChange::List => {
                    for network in client::bypass_list(&bypass.name)? {
                        println!("{network}");
                    }
                }
            }
            Ok(Exit::Success)
        }
        Verb::Explain(args) => explain::run(*args).await,
        Verb::Detach(detach) => self::detach(&detach).await,
        Verb::Gateway(args) => gateway::run(*args).await,
        Verb::Agent(args) if args.check => agent_check::run(&args).await,
        Verb::Agent(args) => agent::run(*args).await,
        Verb::Test(test) => self::test::run(&test),
        Verb::Selftest(args) => selftest::run(&args).await,
        // Done before the runtime was made.
        Verb::SelftestInside(_) | Verb::Cni(_) => Ok(Exit::Internal),
    }
}

/// Serves the metrics of interceptor `name` until a signal.
async fn serve_metrics(name: String, address: SocketAddr) -> Result<Exit, AppError> {
    let mut signals = Signals::listen().map_err(system("cannot catch signals"))?;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Busy { what: format!("cannot listen on {address}"), source })?;
    let ask = Arc::new(move || client::status(&name));
    tokio::select! {
        () = admin::http::serve(listener, ask) => {}
        _ = signals.next() => {}
    }
    Ok(Exit::Success)
}

/// Removes what a killed interceptor left. Until the very end of its workload the hooks stay.
async fn detach(args: &cli::Detach) -> Result<Exit, AppError> {
    let name = args.name.as_str();
    if !nix::unistd::geteuid().is_root() {
        return Err(AppError::Root("detaching removes pinned BPF links; use sudo"));
    }
    // First of all: a pod that is made now is not to wait for what goes away.
    if let (Some(networks), Some(binaries)) = (&args.cni_conf_dir, &args.cni_bin_dir) {
        self::cni::remove(name, networks, binaries)?;
    }
    let cgroups = Session::clean_stale(name, GRACE).await?;
    let isolated = Isolated::clean_stale(name).await?;
    let pins = Pins::of(name);
    let pinned = pins.exist();
    pins.remove()?;
    admin::Server::clean_stale(Path::new(admin::DIR), name)?;
    println!(
        "interceptor: {}",
        match (pinned, cgroups || isolated) {
            (false, false) => format!("nothing of {name} was left"),
            (true, false) => format!("detached {name}: links and maps are unpinned"),
            (false, true) => format!("removed the cgroups of {name}"),
            (true, true) =>
                format!("detached {name}: links and maps are unpinned, its cgroups removed"),
        }
    );
    Ok(Exit::Success)
}
