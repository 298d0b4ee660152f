//! What a decision would look like from outside, in the words of scenario files, and the access-log
//! line that it would leave.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::question::Question;
use super::{Dialled, Names};
use crate::account::{Encoding, Flag, Format, HttpFields, Record};
use crate::decide::door::Via;
use crate::decide::route::{Abort, Destination, Forward, LocalReply};
use crate::decide::traffic::{Origination, Trust, UpstreamProtocol, Verify};
use crate::decide::{Action, Block, Decision, Place, Upstream};
use crate::policy::Enforcement;

/// What can be observed, under the names of scenario files' expectations. What is not known
/// without asking the world is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Expect {
    /// `forward`, `reset`, `local_reply` or `bypass`.
    pub verdict: &'static str,
    /// Status of an answer given here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Body of an answer that a resource gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// As the log prints it.
    pub cluster: String,
    /// As the log prints it.
    pub route: String,
    /// `ip:port`, or `-`; absent where several are possible or a name is not resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Response flags.
    pub flags: Vec<String>,
    /// Response code details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
    /// TLS towards the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_tls: Option<UpstreamTls>,
    /// HTTP version towards the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_protocol: Option<&'static str>,
    /// Path that the upstream sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_path: Option<String>,
    /// Host that the upstream sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_host_header: Option<String>,
    /// Egress proxies, in the order in which they are tried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_proxies: Vec<String>,
    /// What they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_target: Option<String>,
    /// Share of each cluster, where there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub distribution: BTreeMap<String, u32>,
}

/// TLS towards the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpstreamTls {
    /// Whether the proxy starts it.
    pub originated: bool,
    /// The name sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// `system`, `file CA`, `credential CA`, `none`, `chain only` or `chain, name NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<String>,
    /// Whether a client certificate is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<bool>,
}

/// An outcome with what only people read of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The observable part.
    pub expect: Expect,
    /// Every upstream that may be chosen; names where they are not resolved.
    pub upstreams: Vec<String>,
    /// The log line, with words where values vary; `None` where nothing is logged.
    pub log: Option<String>,
    /// Whether anything gets through.
    pub allowed: bool,
}

/// What `decision` would look like. `names` resolves, or knows nothing.
pub(super) fn outcome(
    question: &Question,
    dialled: &Dialled,
    decision: &Decision,
    profile: Enforcement,
    names: &Names<'_>,
) -> Outcome {
    let mut draft = Draft::new(question, dialled, decision);
    match &decision.action {
        Action::Block(Block::Close | Block::Reset) => draft.refused(decision, profile),
        Action::Block(Block::Http { status, .. }) => {
            let (flags, details) = match status {
                400 => (vec![], "bad_host"),
                404 => (vec![Flag::NR], "route_not_found"),
                426 => (vec![], "low_version"),
                _ => (vec![], "direct_response"),
            };
            draft.reply(*status, flags, details);
        }
        Action::Relay(destinations) => draft.pass(destinations, None, question, names),
        Action::Audited(to) => draft.pass(std::slice::from_ref(&**to), None, question, names),
        Action::Forward(forward) => draft.forward(forward, question, names),
        Action::Reply(reply) => draft.answer(reply),
        // Neither is left once a decision is settled and its request judged; refusing is what the
        // data path does with them too.
        Action::Http | Action::ByResolution(_) => draft.refused(decision, profile),
    }
    draft.finish(dialled)
}

/// The outcome of what is never intercepted. `logged`: whether it has a line (strict).
pub(super) fn bypass(question: &Question, dialled: &Dialled, logged: bool) -> Outcome {
    let mut record = Record::new(SystemTime::UNIX_EPOCH, dialled.addr, UNKNOWN_END);
    record.upstream_host = Some(dialled.addr);
    record.upstream_cluster = logged.then(crate::decide::ClusterName::bypass);
    let cluster = record.upstream_cluster.as_ref().map_or("-".to_owned(), ToString::to_string);
    let shown = dialled.show(question);
    let expect = Expect {
        verdict: "bypass",
        cluster,
        route: "-".to_owned(),
        upstream: (!dialled.assumed).then(|| shown.clone()),
        ..Expect::default()
    };
    let log = logged.then(|| line(&record, dialled));
    Outcome { expect, upstreams: vec![shown], log, allowed: true }
}

/// Stands for addresses that only the kernel knows.
const UNKNOWN_END: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

struct Draft {
    expect: Expect,
    upstreams: Vec<String>,
    record: Record,
    allowed: bool,
}

impl Draft {
    fn new(question: &Question, dialled: &Dialled, decision: &Decision) -> Self {
        let mut record = Record::new(SystemTime::UNIX_EPOCH, dialled.addr, UNKNOWN_END);
        record.upstream_cluster = decision.cluster.clone();
        record.route_name = decision.route.clone();
        record.reason = decision.reason;
        let by_request = matches!(
            decision.action,
            Action::Forward(_) | Action::Reply(_) | Action::Block(Block::Http { .. })
        );
        if by_request {
            record.http = Some(HttpFields {
                method: "GET".into(),
                path: question.path.clone(),
                protocol: if question.first == super::FirstBytes::H2c {
                    "HTTP/2"
                } else {
                    "HTTP/1.1"
                },
                request_id: Some("ID".into()),
                authority: Some(question.authority()),
                ..HttpFields::default()
            });
        } else if question.first == super::FirstBytes::Tls {
            record.requested_server_name = question.name().map(ToString::to_string);
        }
        Self { expect: Expect::default(), upstreams: Vec::new(), record, allowed: false }
    }

    fn refused(&mut self, decision: &Decision, profile: Enforcement) {
        self.expect.verdict = "reset";
        self.record.flags = vec![Flag::UH];
        if profile == Enforcement::Strict {
            self.record.connection_termination_details = Some(decision.reason.label().into());
        }
    }

    fn reply(&mut self, status: u16, flags: Vec<Flag>, details: &'static str) {
        self.expect.verdict = "local_reply";
        self.expect.status = Some(status);
        self.record.response_code = status;
        self.record.flags = flags;
        self.record.response_code_details = Some(details.into());
    }

    fn answer(&mut self, reply: &LocalReply) {
        let flags = match reply.flag {
            Some("NR") => vec![Flag::NR],
            _ => vec![],
        };
        self.reply(reply.status, flags, reply.details);
        if let Some(flag) = reply.flag {
            self.expect.flags = vec![flag.to_owned()];
        }
        self.expect.body = Some(String::from_utf8_lossy(&reply.body).into_owned());
        self.record.bytes_sent = reply.body.len() as u64;
        // A resource says so: that is what the request should get.
        self.allowed = reply.flag.is_none();
    }

    fn forward(&mut self, forward: &Forward, question: &Question, names: &Names<'_>) {
        if let Some((Abort::Http(status), percent)) = forward.route.fault.abort
            && percent >= 100.0
        {
            self.reply(status, vec![], "fault_filter_abort");
            self.expect.flags = vec!["FI".to_owned()];
            return;
        }
        self.pass(&forward.destinations, Some(forward), question, names);
    }

    fn pass(
        &mut self,
        destinations: &[Destination],
        forward: Option<&Forward>,
        question: &Question,
        names: &Names<'_>,
    ) {
        let Some(first) = destinations.first() else { return };
        self.record.upstream_cluster = first.cluster.clone();
        if destinations.len() > 1 {
            for one in destinations {
                let cluster = one.cluster.as_ref().map_or("-".to_owned(), ToString::to_string);
                *self.expect.distribution.entry(cluster).or_default() += one.weight;
            }
        }
        let mut known = Vec::new();
        for one in destinations {
            if let Some(via) = one.door.via() {
                self.leave(via);
                continue;
            }
            match places(&one.upstream, question, names) {
                Places::Known(addresses) => {
                    self.upstreams.extend(addresses.iter().map(ToString::to_string));
                    known.extend(addresses);
                }
                Places::Named(texts) => self.upstreams.extend(texts),
            }
        }
        if self.upstreams.is_empty() {
            let missing = first.upstream == Upstream::NoCluster;
            match (forward.is_some(), missing) {
                (true, true) => self.reply(503, vec![], "cluster_not_found"),
                (true, false) => self.reply(503, vec![Flag::UH], "no_healthy_upstream"),
                (false, _) => {
                    self.expect.verdict = "reset";
                    self.record.flags = vec![Flag::UH];
                }
            }
            if missing {
                self.expect.flags = vec!["NC".to_owned()];
            }
            return;
        }
        self.allowed = true;
        self.expect.verdict = "forward";
        if let ([one], 1) = (known.as_slice(), self.upstreams.len()) {
            self.record.upstream_host = Some(*one);
        }
        // Shown as words where it is not known which address it will be.
        self.record.upstream_host.get_or_insert(UNKNOWN_END);
        self.record.upstream_local_address = Some(UNKNOWN_END);
        self.expect.upstream_tls = Some(tls(first.traffic.tls.as_deref(), question));
        if first.traffic.tls.as_ref().is_some_and(|tls| tls.verify == Verify::Impossible) {
            self.allowed = false;
        }
        if let Some(forward) = forward {
            self.record.response_code = 200;
            self.record.response_code_details = Some("via_upstream".into());
            if let Some(http) = &mut self.record.http {
                http.upstream_service_time = Some(Duration::ZERO);
            }
            let rewrite = forward.route.rewrite.as_ref();
            let path = rewrite.and_then(|rewrite| rewrite.path.clone());
            let own = first.headers.request.set.iter().find(|(name, _)| name == ":authority");
            let host = own.map(|(_, host)| host).or(rewrite.and_then(|r| r.authority.as_ref()));
            let host = host.cloned();
            self.expect.upstream_path = Some(path.unwrap_or_else(|| question.path.clone()));
            self.expect.upstream_host_header = Some(host.unwrap_or_else(|| question.authority()));
            self.expect.upstream_protocol = Some(match first.traffic.protocol {
                UpstreamProtocol::Http1 => "HTTP/1.1",
                UpstreamProtocol::Http2 => "HTTP/2",
                UpstreamProtocol::AsClient if question.first == super::FirstBytes::H2c => "HTTP/2",
                UpstreamProtocol::AsClient => "HTTP/1.1",
            });
        }
    }

    /// Through egress proxies: the upstream that is connected to is one of those.
    fn leave(&mut self, via: &Via) {
        let targets = via.targets.iter().map(|one| format!("{}:{}", one.target.0, one.target.1));
        let mut asked = targets.collect::<Vec<_>>().join(", ");
        if let Some(name) = &via.noticed {
            asked = format!("{asked}, or {name} if it has that address");
        }
        self.expect.proxy_target.get_or_insert(asked);
        for proxy in via.proxies.iter().map(ToString::to_string) {
            if !self.expect.egress_proxies.contains(&proxy) {
                self.upstreams.push(proxy.clone());
                self.expect.egress_proxies.push(proxy);
            }
        }
    }

    fn finish(mut self, dialled: &Dialled) -> Outcome {
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let expect = &mut self.expect;
        expect.cluster = dash(self.record.upstream_cluster.as_ref().map(ToString::to_string));
        expect.route = dash(self.record.route_name.as_deref().map(ToOwned::to_owned));
        if expect.flags.is_empty() {
            expect.flags = self.record.flags.iter().map(|flag| format!("{flag:?}")).collect();
        }
        expect.details = self.record.response_code_details.as_deref().map(ToOwned::to_owned);
        expect.upstream = match self.record.upstream_host {
            None => Some("-".to_owned()),
            Some(UNKNOWN_END) => None,
            Some(address) if dialled.assumed && address.ip() == dialled.addr.ip() => None,
            Some(address) => Some(address.to_string()),
        };
        let log = Some(line(&self.record, dialled));
        let upstreams = self.upstreams.iter().map(|text| dialled.word(text)).collect();
        Outcome { expect: self.expect, upstreams, log, allowed: self.allowed }
    }
}

/// Where an upstream may be.
enum Places {
    Known(Vec<SocketAddr>),
    Named(Vec<String>),
}

fn places(upstream: &Upstream, question: &Question, names: &Names<'_>) -> Places {
    let dialled = |port| Places::Known(vec![SocketAddr::new(names.dialled.addr.ip(), port)]);
    let of_names = |targets: &[(Place, u16)]| {
        let mut known = Vec::new();
        for (place, port) in targets {
            let found = match place {
                Place::Ip(ip) => Some(vec![*ip]),
                Place::Name(name) => names.lookup(name).map(|addresses| addresses.to_vec()),
            };
            match found {
                Some(addresses) => {
                    known.extend(addresses.iter().map(|ip| SocketAddr::new(*ip, *port)));
                }
                None => {
                    let named = targets.iter().map(|(place, port)| format!("{place}:{port}"));
                    return Places::Named(named.collect());
                }
            }
        }
        Places::Known(known)
    };
    match upstream {
        Upstream::OriginalDst { port, .. } => dialled(*port),
        Upstream::VerifiedOriginalDst { host, port } => {
            if names.owns(host, question) {
                dialled(*port)
            } else {
                of_names(&[(host.clone().into(), *port)])
            }
        }
        Upstream::Static(endpoints) => {
            Places::Known(endpoints.iter().map(|endpoint| endpoint.target).collect())
        }
        Upstream::Dns { endpoints, round_robin } => {
            let targets: Vec<_> =
                endpoints.iter().map(|endpoint| endpoint.target.clone()).collect();
            match of_names(&targets) {
                Places::Known(mut all) if *round_robin => {
                    all.truncate(1);
                    Places::Known(all)
                }
                places => places,
            }
        }
        Upstream::Unix(sockets) => {
            let paths = sockets.iter().map(|one| format!("unix://{}", one.target.display()));
            Places::Named(paths.collect())
        }
        Upstream::None | Upstream::NoCluster => Places::Known(Vec::new()),
    }
}

fn tls(origination: Option<&Origination>, question: &Question) -> UpstreamTls {
    let Some(tls) = origination else {
        return UpstreamTls {
            originated: false,
            sni: None,
            verify: None,
            client_certificate: None,
        };
    };
    let host = question.name().map(ToString::to_string);
    let sni = tls.sni.clone().or(host);
    let verify = match (tls.verify, &tls.trust, tls.subject_alt_names.first()) {
        (Verify::Nothing, ..) => "none".to_owned(),
        (Verify::Impossible, ..) => "impossible: the connection is refused".to_owned(),
        (Verify::ChainOnly, ..) => "chain only".to_owned(),
        (Verify::ChainAndName, _, Some(name)) => format!("chain, name {name}"),
        (Verify::ChainAndName, Trust::System, None) => "system".to_owned(),
        (Verify::ChainAndName, Trust::File(_), None) => "file CA".to_owned(),
        (Verify::ChainAndName, Trust::Secret(_), None) => "credential CA".to_owned(),
    };
    UpstreamTls {
        originated: true,
        sni,
        verify: Some(verify),
        client_certificate: Some(tls.identity.is_some()),
    }
}

/// The text line, with words in place of what varies from one connection to the next.
fn line(record: &Record, dialled: &Dialled) -> String {
    let line = Format::built_in(Encoding::Text).line(record);
    let line = line.trim_end().replacen("[1970-01-01T00:00:00.000Z]", "[TIME]", 1);
    dialled.word(&line.replace(&UNKNOWN_END.to_string(), "IP:PORT"))
}
