//! What should become of a flow: `decide`, with the proxy's own reader; and whether the kernel should
//! have handled it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use interceptor::decide::host::HostName;
use interceptor::decide::{self, Action, ByAddress, Decision, Flow};
use interceptor::origin::OriginalDst;
use interceptor::policy::{Caller, Enforcement, Outbound, Snapshot, Sources, load};
use interceptor::sniff::{Hello, Sniffer};
use interceptor::tiers::compile::compile;
use interceptor::tiers::{AddressBook, Compiled, NameSet, Row, Survey};

const NAMESPACE: &str = "default";

/// Policy and addresses, as the daemon has them.
pub(crate) struct Oracle {
    snapshot: Snapshot,
    compiled: Compiled,
    names: HashMap<HostName, Vec<IpAddr>>,
}

/// What `decide` says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) passes: bool,
    /// The kernel's tables let it go direct.
    pub(crate) eligible: bool,
    /// More bytes could still make a hello of these.
    pub(crate) unfinished: bool,
}

impl Oracle {
    pub(crate) fn new(
        file: PathBuf,
        outbound: Outbound,
        zone: &[(String, Vec<IpAddr>)],
    ) -> Result<Self> {
        let sources = Sources {
            files: vec![file],
            outbound: Some(outbound),
            enforcement: Some(Enforcement::Strict),
            ..Sources::default()
        };
        let loaded = load(&sources, &Caller::new(NAMESPACE)).map_err(|e| anyhow::anyhow!("{e}"))?;
        ensure!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
        let mut names = HashMap::new();
        for (name, addresses) in zone {
            let name = HostName::parse(name).ok().context("a name of the zone")?;
            names.insert(name, addresses.clone());
        }
        let snapshot = loaded.snapshot;
        let survey = Survey::of(&snapshot.policy);
        // What the daemon asks for by itself, before anybody connects.
        let hosts = survey.hosts();
        let asked = names.iter().filter(|(name, _)| hosts.contains(name));
        let mut book = AddressBook::default();
        book.update(asked.map(|(name, ips)| (name, &**ips)), Instant::now());
        let compiled = compile(&snapshot, NAMESPACE, &survey, &book, std::iter::empty());
        Ok(Self { snapshot, compiled, names })
    }

    /// How many rows the kernel's table of destinations has.
    pub(crate) fn rows(&self) -> usize {
        self.compiled.rows.len()
    }

    pub(crate) fn ask(&self, to: SocketAddr, bytes: &[u8]) -> Expected {
        let hello = Sniffer::default().push(bytes);
        let flow = Flow { dst: OriginalDst::new(to), namespace: NAMESPACE };
        let policy = &self.snapshot.policy;
        let decision = match decide::by_address(policy, &flow) {
            ByAddress::Decided(decision) => decision,
            ByAddress::Inspect { unless_client_speaks } => match &hello {
                Some(hello) => decide::by_hello(policy, &flow, hello),
                None => unless_client_speaks,
            },
        };
        let passes = matches!(self.settle(&decision, to.ip()).action, Action::Relay(_));
        let eligible = passes && self.is_direct(to, hello.as_ref());
        Expected { passes, eligible, unfinished: hello.is_none() }
    }

    fn settle<'d>(&self, decision: &'d Decision, dialled: IpAddr) -> &'d Decision {
        let Action::ByResolution(open) = &decision.action else { return decision };
        open.settle(|host| self.names.get(host).is_some_and(|ips| ips.contains(&dialled)))
    }

    fn is_direct(&self, to: SocketAddr, hello: Option<&Hello>) -> bool {
        let rows = self.compiled.rows.iter();
        let around = rows.filter(|((port, net), _)| *port == to.port() && net.contains(&to.ip()));
        let row = around.max_by_key(|((_, net), _)| net.prefix_len()).map(|(_, row)| row);
        match (row, hello) {
            (Some(Row::Direct(_)), _) => true,
            (Some(Row::Named(set)), Some(Hello::Tls(hello))) => {
                hello.sni.as_ref().is_some_and(|name| lists(set, name))
            }
            _ => false,
        }
    }
}

/// Whether the set's narrowest pattern for the name lets it go.
fn lists(set: &NameSet, name: &HostName) -> bool {
    let fits = |pattern: &&interceptor::tiers::Pattern| {
        let own = pattern.name.as_str();
        match pattern.below {
            false => own == name.as_str(),
            true => name.as_str().strip_suffix(own).is_some_and(|front| front.ends_with('.')),
        }
    };
    let patterns = set.0.keys().filter(fits);
    let narrowest = patterns.max_by_key(|pattern| (!pattern.below, pattern.name.as_str().len()));
    narrowest.is_some_and(|pattern| set.0[pattern].is_some())
}
