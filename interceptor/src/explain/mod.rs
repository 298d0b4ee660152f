//! `interceptor explain`: what would happen to a connection, step by step, and why. Asks the loader
//! and the decisions that the daemon asks; opens nothing but the files that it is given.

mod candidates;
mod nearest;
mod outcome;
mod question;
mod render;
mod suggest;
#[cfg(test)]
mod tests;
mod way;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use self::candidates::Candidate;
pub use self::nearest::Nearest;
pub use self::outcome::{Expect, Outcome, UpstreamTls};
pub use self::question::{BadQuestion, FirstBytes, Peer, Question};
pub use self::way::Way;
use crate::decide::host::HostName;
use crate::decide::{self, Action, ByAddress, Decision, Flow, RequestHead};
use crate::origin::OriginalDst;
use crate::policy::{self, Caller, Enforcement, LoadErrors, Loaded, Snapshot, Sources};
use crate::resolve::{Resolver, ResolverConfig};

/// Names that resolving may add in turn: an answer leads to another decision, and that to others.
const ROUNDS: usize = 4;

/// Everything about the asker that does not change with the question.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The resources.
    pub sources: Sources,
    /// The workload that asks.
    pub caller: Caller,
    /// Destinations that are not intercepted.
    pub bypass: Vec<IpNet>,
    /// Whom to ask for addresses; `None` = nobody, names stay names.
    pub resolvers: Option<Vec<SocketAddr>>,
}

/// What would happen.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What was asked.
    pub question: Question,
    /// Where the client dials.
    pub dialled: Dialled,
    /// Profile and mode in force.
    pub snapshot: Snapshot,
    /// The stages before the verdict, in order: what each is called and what it finds.
    pub steps: Vec<(&'static str, String)>,
    /// Whether it needs the proxy.
    pub way: Way,
    /// Resources that were considered.
    pub candidates: Vec<Candidate>,
    /// How many more there are.
    pub more_candidates: usize,
    /// The verdict's reason as a clause, and its label.
    pub reason: (&'static str, &'static str),
    /// The resource that decided.
    pub rule: Option<String>,
    /// What it looks like.
    pub outcome: Outcome,
    /// For a refusal: the resource that came nearest.
    pub nearest: Option<Nearest>,
    /// For a refusal: a ServiceEntry that would allow it, as YAML.
    pub would_allow: Option<String>,
    /// What the loader had to say, one a line.
    pub notices: Vec<String>,
}

/// The address that the client dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialled {
    /// The address; a stand-in where it is assumed.
    pub addr: SocketAddr,
    /// It is not known which address the name has: one that no resource lists is assumed.
    pub assumed: bool,
}

impl Dialled {
    /// `text` with a word where it shows the stand-in.
    fn word(&self, text: &str) -> String {
        if !self.assumed {
            return text.to_owned();
        }
        text.replace(&self.addr.ip().to_string(), "IP")
    }

    /// As people call it.
    fn show(&self, question: &Question) -> String {
        match question.name() {
            Some(name) if self.assumed => format!("{name}:{}", self.addr.port()),
            _ => self.addr.to_string(),
        }
    }
}

/// The resource that came nearest to allowing a connection that was refused, of which no more is known
/// than where it went and the name that it showed.
pub fn nearest_to(
    policy: &decide::Policy,
    name: Option<&HostName>,
    dst: SocketAddr,
) -> Option<Nearest> {
    let question = Question {
        first: if name.is_some() { FirstBytes::Tls } else { FirstBytes::Raw },
        host: name.map_or(Peer::Ip(dst.ip()), |name| Peer::Name(name.clone())),
        port: dst.port(),
        path: "/".to_owned(),
        dst: Some(dst),
    };
    nearest::nearest(policy, &question, &Dialled { addr: dst, assumed: false })
}

/// What is known of names. Those that were asked for in vain are noted.
struct Names<'a> {
    known: &'a HashMap<HostName, Arc<[IpAddr]>>,
    missing: RefCell<BTreeSet<HostName>>,
    dialled: Dialled,
}

impl Names<'_> {
    fn lookup(&self, name: &HostName) -> Option<Arc<[IpAddr]>> {
        let found = self.known.get(name).cloned();
        if found.is_none() {
            self.missing.borrow_mut().insert(name.clone());
        }
        found
    }

    /// Whether the dialled address is one of `host`'s. Where nobody was asked, a client is taken to
    /// have dialled what it asked for.
    fn owns(&self, host: &HostName, question: &Question) -> bool {
        match self.lookup(host) {
            Some(addresses) => addresses.contains(&self.dialled.addr.ip()),
            None => self.dialled.assumed && question.name() == Some(host),
        }
    }
}

/// A question with all that its answer depends on.
struct Asker<'a> {
    question: &'a Question,
    sources: &'a Sources,
    caller: &'a Caller,
    bypass: &'a [IpNet],
    known: &'a HashMap<HostName, Arc<[IpAddr]>>,
    missing: RefCell<BTreeSet<HostName>>,
}

/// A decision with its circumstances.
struct Answer {
    dialled: Dialled,
    steps: Vec<(&'static str, String)>,
    decision: Option<Decision>,
    outcome: Outcome,
}

/// Explains what would happen to `question`.
///
/// # Errors
/// The resources do not load.
pub async fn explain(setting: &Setting, question: &Question) -> Result<Explanation, LoadErrors> {
    let mut known = HashMap::new();
    let resolver = setting.resolvers.as_ref().map(|servers| {
        Resolver::new(ResolverConfig {
            servers: servers.clone(),
            stale_for: None,
            refresh: Duration::from_secs(60),
        })
    });
    for _ in 0..ROUNDS {
        let asker = Asker::new(setting, question, &known);
        asker.ask(asker.sources)?;
        let Some(resolver) = &resolver else { break };
        let missing = asker.missing.take();
        if missing.is_empty() {
            break;
        }
        for name in missing {
            // A name that does not resolve has no address; the outcome says so.
            let addresses = resolver.lookup(&name).await.unwrap_or_else(|_| Arc::from([]));
            known.insert(name, addresses);
        }
    }
    Asker::new(setting, question, &known).explain()
}

impl<'a> Asker<'a> {
    fn new(
        setting: &'a Setting,
        question: &'a Question,
        known: &'a HashMap<HostName, Arc<[IpAddr]>>,
    ) -> Self {
        Self {
            question,
            sources: &setting.sources,
            caller: &setting.caller,
            bypass: &setting.bypass,
            known,
            missing: RefCell::default(),
        }
    }

    fn explain(&self) -> Result<Explanation, LoadErrors> {
        let question = self.question;
        let (loaded, answer) = self.ask(self.sources)?;
        let policy = &loaded.snapshot.policy;
        let (candidates, more_candidates) = match &answer.decision {
            Some(decision) => candidates::candidates(policy, question, &answer.dialled, decision),
            None => (Vec::new(), 0),
        };
        let way = match &answer.decision {
            Some(_) => {
                let known = self.known.iter().map(|(name, ips)| (name, &**ips));
                let namespace = &self.caller.namespace;
                Way::of(&loaded.snapshot, namespace, question, &answer.dialled, known)
            }
            None => Way::bypass(),
        };
        let refused = !answer.outcome.allowed;
        let nearest =
            refused.then(|| nearest::nearest(policy, question, &answer.dialled)).flatten();
        let suggest = || suggest::suggest(self, policy, question, &answer.dialled);
        let would_allow = refused.then(suggest).flatten();
        let reason = answer
            .decision
            .as_ref()
            .map_or(crate::decide::Reason::Bypassed, |decision| decision.reason);
        let warnings = loaded.warnings.iter().map(|notice| format!("warning: {notice}"));
        let left_out = loaded.rejected.iter().map(|notice| format!("left out: {notice}"));
        Ok(Explanation {
            question: question.clone(),
            dialled: answer.dialled,
            steps: answer.steps,
            way,
            candidates,
            more_candidates,
            reason: (reason.explain(), reason.label()),
            rule: answer.decision.as_ref().and_then(|d| d.rule.as_ref()).map(ToString::to_string),
            outcome: answer.outcome,
            nearest,
            would_allow,
            notices: warnings.chain(left_out).collect(),
            snapshot: loaded.snapshot,
        })
    }

    /// Loads `sources` and decides the question by them, as the data path would.
    fn ask(&self, sources: &Sources) -> Result<(Loaded, Answer), LoadErrors> {
        let loaded = policy::load(sources, self.caller)?;
        let answer = self.decide(&loaded.snapshot);
        Ok((loaded, answer))
    }

    fn decide(&self, snapshot: &Snapshot) -> Answer {
        let question = self.question;
        let dialled = self.dialled(snapshot);
        let profile = snapshot.enforcement;
        let mut steps = Vec::new();
        let covering = self.bypass.iter().find(|network| network.contains(&dialled.addr.ip()));
        let direct = match covering {
            Some(network) => Some(format!("bypassed: --bypass {network} covers the destination")),
            None if dialled.addr.ip().is_loopback() => {
                Some("bypassed: loopback stays inside the machine (CAP-2)".to_owned())
            }
            None => None,
        };
        if let Some(why) = direct {
            steps.push(("capture", why));
            let logged = covering.is_some() && profile == Enforcement::Strict;
            let outcome = outcome::bypass(question, &dialled, logged);
            return Answer { dialled, steps, decision: None, outcome };
        }
        steps.push(("capture", format!("intercepted on its way to {}", dialled.show(question))));

        let names = Names { known: self.known, missing: RefCell::default(), dialled };
        let flow = Flow { dst: OriginalDst::new(dialled.addr), namespace: &self.caller.namespace };
        steps.push(("handler", handler(snapshot, question)));
        let decision = by_stages(snapshot, &flow, question, &names, &mut steps);
        let outcome = outcome::outcome(question, &dialled, &decision, profile, &names);
        self.missing.borrow_mut().extend(names.missing.take());
        Answer { dialled, steps, decision: Some(decision), outcome }
    }

    /// Where the client dials: as given, as resolved, or an address that stands for one that nobody
    /// lists.
    fn dialled(&self, snapshot: &Snapshot) -> Dialled {
        let question = self.question;
        if let Some(addr) = question.dst {
            return Dialled { addr, assumed: false };
        }
        if let Some(name) = question.name() {
            match self.known.get(name).and_then(|addresses| addresses.first()) {
                Some(ip) => {
                    return Dialled { addr: SocketAddr::new(*ip, question.port), assumed: false };
                }
                None => {
                    self.missing.borrow_mut().insert(name.clone());
                }
            }
        }
        let services = snapshot.policy.services();
        let free =
            STAND_INS.into_iter().find(|ip| !services.iter().any(|service| service.lists(*ip)));
        let addr = SocketAddr::new(free.unwrap_or(STAND_INS[0]), question.port);
        Dialled { addr, assumed: true }
    }
}

/// Addresses of documentation, never a real destination.
const STAND_INS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 199)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 199)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 199)),
];

/// By address, by first bytes, by request: each asked only where the one before could not answer.
fn by_stages(
    snapshot: &Snapshot,
    flow: &Flow<'_>,
    question: &Question,
    names: &Names<'_>,
    steps: &mut Vec<(&'static str, String)>,
) -> Decision {
    let settle = |decision: Decision| match &decision.action {
        Action::ByResolution(open) => open.settle(|host| names.owns(host, question)).clone(),
        _ => decision,
    };
    let otherwise = match decide::by_address(&snapshot.policy, flow) {
        ByAddress::Decided(decision) => {
            steps.push(("first bytes", "not read: address and port decide".to_owned()));
            return settle(decision);
        }
        ByAddress::Inspect { unless_client_speaks } => settle(unless_client_speaks),
    };
    let shown = match (question.first, question.name()) {
        (FirstBytes::Tls, Some(name)) => format!("a TLS ClientHello for {name}"),
        (FirstBytes::Tls, None) => "a TLS ClientHello without a name".to_owned(),
        (FirstBytes::Http1, _) => "an HTTP/1.1 request".to_owned(),
        (FirstBytes::H2c, _) => "the HTTP/2 preface".to_owned(),
        (FirstBytes::Raw, _) => "bytes that are neither TLS nor HTTP".to_owned(),
        (FirstBytes::None, _) => {
            steps.push(("first bytes", "none: the client waits for the server".to_owned()));
            return otherwise;
        }
    };
    steps.push(("first bytes", shown));
    let decision = settle(decide::by_hello(&snapshot.policy, flow, &question.hello()));
    if decision.action != Action::Http {
        return decision;
    }
    let authority = question.authority();
    let h2 = question.first == FirstBytes::H2c;
    steps.push((
        "request",
        format!("GET {} with Host {authority}, judged on its own", question.path),
    ));
    let head = RequestHead {
        method: "GET",
        authority: h2.then_some(authority.as_str()),
        hosts: if h2 { &[] } else { &[authority.as_str()] },
        path: &question.path,
        version: if h2 { 20 } else { 11 },
        headers: &(),
    };
    decide::by_request(&snapshot.policy, flow, &head)
}

/// What is there for the port.
fn handler(snapshot: &Snapshot, question: &Question) -> String {
    let port = question.port;
    let services = snapshot.policy.services();
    match services.iter().filter(|service| service.port == port).count() {
        0 => format!("no resource names port {port}: the outbound policy decides"),
        1 => format!("port {port}, which one service uses"),
        many => format!("port {port}, which {many} services use"),
    }
}
