//! What the walkthrough plays: the tutorial's steps, its commands, and what must come of them.

mod bypass;
mod gateway;
mod listing;
mod seeing;
mod steering;

use std::net::{IpAddr, SocketAddr};

/// Flags that turn the tutorial's step 4 on.
pub(super) const REGISTRY_ONLY: [&str; 2] =
    ["--mesh-config", "examples/walkthrough/04-registry-only.yaml"];

/// The tutorial's ServiceEntries, as files.
pub(super) const ENTRIES: [&str; 4] = [HTTPBIN_ENTRY, GOOGLE_ENTRY, CNN_ENTRY, WIKIPEDIA_ENTRY];

const HTTPBIN_ENTRY: &str = "examples/walkthrough/05-httpbin.yaml";
const GOOGLE_ENTRY: &str = "examples/walkthrough/06-google.yaml";
const CNN_ENTRY: &str = "examples/walkthrough/08-1-cnn.yaml";
const WIKIPEDIA_ENTRY: &str = "examples/walkthrough/09-wikipedia.yaml";

/// One step of the tutorial: a policy, and commands that are tried under it.
#[derive(Debug)]
pub(super) struct Step {
    /// The tutorial's number.
    pub(super) chapter: &'static str,
    /// What the step shows.
    pub(super) title: &'static str,
    /// Flags of `interceptor run`.
    pub(super) flags: Vec<&'static str>,
    /// Where the access log comes from.
    pub(super) log: LogPlace,
    /// Whether it takes seconds; then it is played beside the others, in a world of its own.
    pub(super) slow: bool,
    /// Flags of the gateway through which alone the workload comes out; none where it has a way itself.
    pub(super) gateway: Option<&'static [&'static str]>,
    /// What is tried, in order.
    pub(super) actions: Vec<Action>,
}

/// Where a step's access log is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogPlace {
    /// In a file of its own, so that it doesn't mix with what the commands print.
    Apart,
    /// On standard output and nowhere else, where the step's resources want it.
    StandardOutput,
}

/// One thing that the user types.
#[derive(Debug)]
pub(super) enum Action {
    /// A command of the workload.
    Try(Try),
    /// The same, where the gateway has something to say of it.
    Through(Through),
    /// A verb of the product while it runs: `bypass add …`. The step then runs as one
    /// `interceptor run`, and its commands through `interceptor exec`.
    Verb(&'static str),
}

/// One command of the workload and what must come of it.
#[derive(Debug)]
pub(super) struct Try {
    /// As typed, for `bash`.
    pub(super) command: &'static str,
    /// Which sample of the specification it is.
    pub(super) rule: &'static str,
    /// The result in words, for the reader.
    pub(super) expected: &'static str,
    /// The exit status.
    pub(super) exit: i32,
    /// What the output (standard output, then standard error) must contain, in this order.
    pub(super) output: Vec<&'static str>,
    /// The shape of every access-log line (see [`crate::log`]).
    pub(super) log: Vec<String>,
    /// Places, and whether connections to them must have been seen at the far side or must not.
    pub(super) arrives: Vec<(SocketAddr, bool)>,
}

/// A command whose connections come to the gateway.
#[derive(Debug)]
pub(super) struct Through {
    /// The command, and what the node says.
    pub(super) tried: Try,
    /// The shape of every line of the gateway's access log.
    pub(super) gateway: Vec<String>,
}

impl Step {
    fn new(
        chapter: &'static str,
        title: &'static str,
        flags: &[&'static str],
        actions: Vec<Action>,
    ) -> Self {
        Self {
            chapter,
            title,
            flags: flags.to_vec(),
            log: LogPlace::Apart,
            slow: false,
            gateway: None,
            actions,
        }
    }

    /// REGISTRY_ONLY, and what these files list.
    fn listed(
        chapter: &'static str,
        title: &'static str,
        files: &[&'static str],
        actions: Vec<Action>,
    ) -> Self {
        let mut flags = REGISTRY_ONLY.to_vec();
        flags.extend(files.iter().flat_map(|file| ["-f", file]));
        Self::new(chapter, title, &flags, actions)
    }

    fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    /// In a world of its own, like all that are slow.
    fn behind(self, gateway: &'static [&'static str]) -> Self {
        Self { slow: true, gateway: Some(gateway), ..self }
    }

    fn logging_to_standard_output(self) -> Self {
        Self { log: LogPlace::StandardOutput, ..self }
    }
}

/// The whole walkthrough.
#[must_use]
pub(super) fn script() -> Vec<Step> {
    vec![
        Step::new(
            "1.1",
            "The access log, switched on by Telemetry",
            &["--outbound", "allow-any", "-f", "examples/walkthrough/01-telemetry.yaml"],
            seeing::log_line("SEED-1"),
        )
        .logging_to_standard_output(),
        Step::new(
            "1.2",
            "The same by mesh configuration",
            &["--mesh-config", "examples/walkthrough/02-access-log.yaml"],
            seeing::log_line("SEED-2"),
        )
        .logging_to_standard_output(),
        Step::new(
            "3",
            "ALLOW_ANY: everything passes, and one sees what leaves",
            &["--outbound", "allow-any"],
            seeing::allow_any(),
        ),
        Step::listed(
            "4",
            "REGISTRY_ONLY: what is not listed is refused",
            &[],
            listing::registry_only(),
        ),
        Step::listed("5", "An external HTTP service", &[HTTPBIN_ENTRY], listing::http_service()),
        Step::listed("6", "An external HTTPS service", &[GOOGLE_ENTRY], listing::https_service()),
        Step::listed(
            "7",
            "A service that takes its time",
            &[HTTPBIN_ENTRY],
            steering::slow_answer(),
        )
        .slow(),
        Step::listed(
            "7",
            "The same with a VirtualService: three seconds and no longer",
            &[HTTPBIN_ENTRY, "examples/walkthrough/07-httpbin-timeout.yaml"],
            steering::timeout(),
        )
        .slow(),
        Step::listed(
            "8.1",
            "Plain HTTP that is redirected to HTTPS",
            &[CNN_ENTRY],
            steering::redirect(),
        ),
        Step::listed(
            "8.2",
            "The same with a DestinationRule: plain HTTP inside, HTTPS outside",
            &["examples/walkthrough/08-2-cnn-tls-origination.yaml"],
            steering::tls_origination(),
        ),
        Step::listed("9", "A wildcard host", &[WIKIPEDIA_ENTRY], listing::wildcard()),
        Step::listed(
            "3-1",
            "The third way: around the proxy by address range, while it runs",
            &[],
            bypass::bypass(),
        ),
        Step::listed(
            "10",
            "Through an egress gateway: only its namespace has a route to the outside",
            &[gateway::FILE],
            gateway::one_way_out(),
        )
        .behind(&gateway::GATEWAY),
    ]
}

fn http(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 80)
}

fn https(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 443)
}
