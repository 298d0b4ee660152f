//! A flow on its way, in the order of `conn`: captured or not, the three doors, acting, the record.
//! Deciding and accounting are the product's own; acting is the model's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::carry::{CLIENT_PORT, RelayFailure, Speech, UPSTREAM_PORT, near, relay};
use super::case::{FirstBytes, Flow, Setting, Transport};
use super::client::{Request, hello};
use super::compare::built_in;
use super::exchange::{self, Exchanged};
use super::observed::{Observation, Observed, Verdict};
use super::series;
use super::world::{Nowhere, World};
use crate::account::{AccessLog, ConnectionAccount, Encoding, Flag, HttpFields, More, Record};
use crate::act::http::refusal_body;
use crate::clock;
use crate::decide::door::Door;
use crate::decide::route::Destination;
use crate::decide::traffic::TrafficPolicy;
use crate::decide::{self, Action, Block, ByAddress, ClusterName, Decision, Reason, Upstream};
use crate::origin::{Origin, OriginalDst};
use crate::policy::{Enforcement, Snapshot};
use crate::sniff::Hello;
use crate::workloads::Workload;
use crate::workloads::annotations::{BadList, CaptureLists};
use crate::workloads::capture::{Bypass, Capture, Sender, capture};

/// Everything that flows of one case share.
pub(super) struct Site<'a> {
    snapshot: &'a Snapshot,
    world: World<'a>,
    workload: Arc<Workload>,
    lists: CaptureLists,
    sender: Sender,
    /// It is what the flow enters: nothing captures it.
    is_gateway: bool,
}

/// A decided connection.
struct Sniffed {
    decision: Decision,
    sni: Option<String>,
    waited: Duration,
}

impl<'a> Site<'a> {
    /// # Errors
    /// The lists that say what is captured are malformed, so that the pod would not start (CAP-4).
    pub(super) fn new(
        setting: &Setting,
        snapshot: &'a Snapshot,
        world: World<'a>,
    ) -> Result<Self, BadList> {
        let caller = &setting.workload;
        let lists = CaptureLists::from_values(&setting.values)?.replaced_by(&caller.annotations)?;
        // The label goes before the annotation, which is the older way.
        let inject = "sidecar.istio.io/inject";
        let inject = caller.labels.get(inject).or_else(|| caller.annotations.get(inject));
        let opted_out = inject.is_some_and(|value| value == "false");
        let workload = Workload {
            namespace: caller.namespace.as_str().into(),
            name: "scenario".into(),
            service_account: "".into(),
            labels: caller.labels.clone(),
            pod: None,
        };
        let is_gateway = setting.gateway.is_some();
        let sender = Sender { uid: caller.uid, opted_out };
        Ok(Self { snapshot, world, workload: Arc::new(workload), lists, sender, is_gateway })
    }

    /// Sends `flow` `repeat` times, then what follows it.
    pub(super) fn observe(mut self, flow: &Flow, repeat: u32) -> Observation {
        let mut seen = Observation::default();
        let mut next = Some(flow);
        let mut times = repeat;
        while let Some(flow) = next {
            seen.flows.extend((0..times).map(|_| self.one(flow)));
            next = flow.then.as_deref();
            times = next.and_then(|flow| flow.repeat).unwrap_or(1);
        }
        let records = || seen.flows.iter().filter_map(|flow| flow.record.as_ref());
        seen.lines = records().flat_map(|record| self.lines(record)).collect();
        let app = self.workload.labels.get("app").map(String::as_str);
        let namespace = &*self.workload.namespace;
        let grown = |record: &Record| series::of(record, namespace, app, self.snapshot.enforcement);
        seen.series = records().flat_map(grown).collect();
        seen
    }

    /// The lines of a record. Where the configuration is silent, Istio logs nothing (MESH-2), and
    /// strict logs.
    fn lines(&self, record: &Record) -> Vec<String> {
        match &self.snapshot.access_log {
            Some(settings) => {
                let lines = settings.iter().filter_map(|output| output.line(record));
                lines.map(|line| line.trim_end().to_owned()).collect()
            }
            None if self.strict() => vec![built_in(Encoding::Text, record)],
            None => Vec::new(),
        }
    }

    fn strict(&self) -> bool {
        self.snapshot.enforcement == Enforcement::Strict
    }

    fn one(&mut self, flow: &Flow) -> Observed {
        let dst = OriginalDst::new(flow.dst);
        let request = flow.http.as_ref().map(|http| Request::of(http, flow.first_bytes));
        let speech = Speech {
            dst: dst.addr(),
            request: request.as_ref(),
            tls: (flow.first_bytes == FirstBytes::Tls).then_some(flow.sni.as_deref()),
        };
        if flow.transport == Transport::Udp {
            return self.datagram(dst.addr());
        }
        let profile = self.snapshot.enforcement;
        match capture(&self.lists, self.sender, dst.addr(), profile) {
            _ if self.is_gateway => {}
            Capture::Bypassed(why) => return self.bypassed(why, speech),
            Capture::ProxyPort => return self.proxy_port(flow, dst.addr()),
            Capture::Captured => {}
        }
        let origin = Origin {
            id: 1,
            dst,
            src: near(dst.addr(), CLIENT_PORT),
            workload: Arc::clone(&self.workload),
            arrival: None,
            accepted: tokio::time::Instant::now(),
            accepted_wall: clock::wall(),
        };
        let first = hello(flow, request.as_ref());
        match self.sniff(&origin, first) {
            Some(sniffed) => self.act(flow, &origin, sniffed, speech),
            None => Observed { curl_exit: curl(flow, 28), ..ended(Verdict::Hang, Duration::MAX) },
        }
    }

    /// The doors up to the client's first bytes; `None`: nothing ever comes.
    fn sniff(&self, origin: &Origin, first: Option<Hello>) -> Option<Sniffed> {
        let policy = &self.snapshot.policy;
        let without = |decision, waited| Some(Sniffed { decision, sni: None, waited });
        let otherwise = match decide::by_address(policy, &origin.flow()) {
            ByAddress::Decided(decision) => {
                return without(self.settle(decision, origin), Duration::ZERO);
            }
            ByAddress::Inspect { unless_client_speaks } => {
                self.settle(unless_client_speaks, origin)
            }
        };
        let Some(hello) = first.filter(|hello| *hello != Hello::Silent) else {
            // Strict lets the server speak first where no byte could refuse (LIS-21, GAP-11).
            let relays = matches!(otherwise.action, Action::Relay(_));
            return match self.snapshot.sniff_timeout {
                _ if relays && self.strict() => without(otherwise, Duration::ZERO),
                Some(limit) => without(otherwise, limit),
                None => None,
            };
        };
        let decision = self.settle(decide::by_hello(policy, &origin.flow(), &hello), origin);
        let sni = match &hello {
            Hello::Tls(hello) => hello.sni.as_ref().map(ToString::to_string),
            _ => None,
        };
        Some(Sniffed { decision, sni, waited: Duration::ZERO })
    }

    fn settle(&self, decision: Decision, origin: &Origin) -> Decision {
        let Action::ByResolution(open) = &decision.action else { return decision };
        let dialled = origin.dst.addr().ip();
        open.settle(|host| self.world.resolve(host).contains(&dialled)).clone()
    }

    fn act(
        &mut self,
        flow: &Flow,
        origin: &Origin,
        sniffed: Sniffed,
        speech: Speech<'_>,
    ) -> Observed {
        let (log, captured) = AccessLog::memory();
        let mut account = ConnectionAccount::open(log, origin);
        let explain = self.strict();
        account.decided(&sniffed.decision, explain);
        if let Some(sni) = sniffed.sni {
            account.server_name(sni);
        }
        let mut seen = match &sniffed.decision.action {
            Action::Http => {
                account.per_request();
                return match speech.request {
                    Some(request) => self.request(origin, request),
                    // A client that goes no further than its first bytes asks for nothing.
                    None => ended(Verdict::Hang, Duration::MAX),
                };
            }
            Action::Relay(destinations) => {
                let destination = self.world.pick(destinations).clone();
                self.relayed(flow, &destination, speech, account)
            }
            Action::Block(block) => {
                account.close(0, 0);
                let exit = if *block == Block::Reset { 56 } else { 52 };
                Observed { curl_exit: curl(flow, exit), ..ended(Verdict::Reset, Duration::ZERO) }
            }
            // Scenarios know no audit.
            Action::Forward(_)
            | Action::Reply(_)
            | Action::ByResolution(_)
            | Action::Audited(_) => {
                account.refused(Reason::NoPolicy, explain);
                account.close(0, 0);
                Observed { curl_exit: curl(flow, 56), ..ended(Verdict::Reset, Duration::ZERO) }
            }
        };
        seen.duration = seen.duration.saturating_add(sniffed.waited);
        seen.record = captured.records().pop().map(|mut record| {
            record.duration = seen.duration;
            record
        });
        seen
    }

    fn relayed(
        &mut self,
        flow: &Flow,
        destination: &Destination,
        speech: Speech<'_>,
        mut account: ConnectionAccount,
    ) -> Observed {
        let done = relay(&mut self.world, destination, speech);
        account.cluster(destination.cluster.clone());
        let mut seen = ended(Verdict::Forward, done.duration);
        seen.attempts = 1;
        match (&done.failed, done.upstream) {
            (None, Some(upstream)) => {
                account.upstream(upstream, near(upstream, UPSTREAM_PORT), || None);
                account.close(done.bytes.0, done.bytes.1);
                seen.bytes_to_client = done.bytes.1;
                seen.response = done.response;
                seen.seen = done.seen;
                seen.curl_exit = curl(flow, done.curl_exit);
                return seen;
            }
            (Some(RelayFailure::Nowhere(Nowhere::Refused(reason))), _) => {
                account.refused(*reason, self.strict());
            }
            (Some(failure), tried) => {
                if matches!(failure, RelayFailure::Nowhere(Nowhere::NoCluster)) {
                    account.cluster(None);
                }
                let why = match failure {
                    RelayFailure::Connect(failure) => Some(failure.transport().map_or_else(
                        || "connection_timeout".to_owned(),
                        |text| text.replace(' ', "_"),
                    )),
                    _ => None,
                };
                account.upstream_failed(tried, failure.flags(), why);
            }
            (None, None) => {}
        }
        account.close(0, 0);
        seen.verdict = Verdict::Reset;
        seen.curl_exit = curl(flow, 56);
        seen
    }

    /// One request of a connection that is served as HTTP.
    fn request(&mut self, origin: &Origin, request: &Request) -> Observed {
        let policy = &self.snapshot.policy;
        let dst = origin.dst.addr();
        let decision = request.with_head(|head| decide::by_request(policy, &origin.flow(), head));
        let mut done = match &decision.action {
            Action::Forward(forward) => exchange::forward(&mut self.world, forward, request, dst),
            Action::Reply(local) => exchange::reply(local),
            Action::Block(Block::Http { status, explain, .. }) => {
                let body = match explain {
                    true => refusal_body(request.host().unwrap_or_default(), dst.port(), &decision),
                    false => String::new(),
                };
                refused(*status, request, body)
            }
            // No verdict on a request asks for these.
            Action::Block(_)
            | Action::Relay(_)
            | Action::Http
            | Action::ByResolution(_)
            | Action::Audited(_) => refused(502, request, String::new()),
        };
        if !matches!(decision.action, Action::Forward(_)) {
            done.cluster.clone_from(&decision.cluster);
        }
        let record = record_of(origin, request, &decision, &done);
        let bytes = done.response.body.len() as u64;
        let head: usize = done.response.headers.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
        Observed {
            verdict: done.verdict,
            record: Some(record),
            direct: None,
            response: Some(done.response),
            seen: done.seen,
            attempts: done.attempts,
            bytes_to_client: bytes + head as u64 + 19,
            duration: done.duration,
            curl_exit: Some(0),
        }
    }

    /// Not captured: straight to the network. In strict a line says so where an operator's list was
    /// the reason (profiles.md).
    fn bypassed(&mut self, why: Bypass, speech: Speech<'_>) -> Observed {
        let direct = Destination {
            weight: 1,
            cluster: Some(ClusterName::bypass()),
            upstream: Upstream::OriginalDst { port: speech.dst.port(), name: None },
            judged: None,
            door: Door::Direct,
            traffic: Arc::new(TrafficPolicy::default()),
            headers: Arc::default(),
        };
        let done = relay(&mut self.world, &direct, speech);
        let mut seen = ended(Verdict::Bypass, done.duration);
        seen.direct = Some(speech.dst);
        if self.strict() && why.is_listed() {
            let mut record = self.record(speech.dst);
            record.upstream_cluster = direct.cluster;
            record.upstream_host = Some(speech.dst);
            // One connection: the client's end is the upstream's peer.
            record.upstream_local_address = Some(near(speech.dst, CLIENT_PORT));
            record.reason = Reason::Bypassed;
            record.bytes_received = done.bytes.0;
            record.bytes_sent = done.bytes.1;
            record.duration = done.duration;
            seen.record = Some(record);
        }
        let refused = matches!(&done.failed, Some(RelayFailure::Connect(_)));
        seen.curl_exit = (speech.tls.is_some() || speech.request.is_some()).then_some(if refused {
            7
        } else {
            done.curl_exit
        });
        seen.bytes_to_client = done.bytes.1;
        seen.response = done.response;
        seen
    }

    /// CAP-11, as `conn` refuses what the kernel recorded no destination for.
    fn proxy_port(&self, flow: &Flow, dst: SocketAddr) -> Observed {
        let record = self.black_hole(dst, Reason::NoOriginalDst);
        Observed {
            record: Some(record),
            curl_exit: curl(flow, 56),
            ..ended(Verdict::Reset, Duration::ZERO)
        }
    }

    /// Other protocols (profiles.md: CAP-1, T-4): never captured in istio; in strict they pass
    /// directly, or, with REGISTRY_ONLY, only where an entry allows address and port.
    fn datagram(&self, dst: SocketAddr) -> Observed {
        let allowed = self
            .snapshot
            .udp_allowed
            .iter()
            .any(|(network, port)| network.contains(&dst.ip()) && *port == dst.port());
        if !self.snapshot.refuse_datagrams || allowed || dst.ip().is_loopback() {
            return Observed { direct: Some(dst), ..ended(Verdict::Bypass, Duration::ZERO) };
        }
        Observed {
            record: Some(self.black_hole(dst, Reason::NotRegistered)),
            ..ended(Verdict::Reset, Duration::ZERO)
        }
    }

    fn record(&self, dst: SocketAddr) -> Record {
        Record::new(clock::wall(), dst, near(dst, CLIENT_PORT))
    }

    fn black_hole(&self, dst: SocketAddr, reason: Reason) -> Record {
        let mut record = self.record(dst);
        record.upstream_cluster = Some(ClusterName::black_hole());
        record.flags = vec![Flag::UH];
        record.reason = reason;
        if self.strict() {
            record.connection_termination_details = Some(reason.label().into());
        }
        record
    }
}

/// An end without an answer.
fn ended(verdict: Verdict, duration: Duration) -> Observed {
    Observed {
        verdict,
        record: None,
        direct: None,
        response: None,
        seen: None,
        attempts: 0,
        bytes_to_client: 0,
        duration,
        curl_exit: None,
    }
}

/// curl's exit where a curl sends this flow: over TLS, any end before the handshake's is 35.
fn curl(flow: &Flow, exit: u8) -> Option<u8> {
    match (flow.first_bytes, exit) {
        (FirstBytes::Tls, 52 | 56) => Some(35),
        (FirstBytes::Tls | FirstBytes::Http1 | FirstBytes::H2c, exit) => Some(exit),
        (FirstBytes::Raw | FirstBytes::None, _) => None,
    }
}

/// A refusal by policy (LOG-20).
fn refused(status: u16, request: &Request, body: String) -> Exchanged {
    let details = match status {
        400 if request.host().is_none() => "missing_host_header",
        400 => "bad_host",
        404 => "route_not_found",
        426 => "low_version",
        _ => "direct_response",
    };
    let mut done = Exchanged::local(status, details, body);
    if status == 404 {
        done.flags = vec![Flag::NR];
    }
    done
}

/// The record of a request (LOG-3).
fn record_of(origin: &Origin, request: &Request, decision: &Decision, done: &Exchanged) -> Record {
    Record {
        http: Some(HttpFields {
            method: request.method.clone(),
            path: request.path.clone(),
            protocol: match request.version {
                20 => "HTTP/2",
                10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            upstream_service_time: done.service_time,
            x_forwarded_for: request.header("x-forwarded-for"),
            user_agent: request.header("user-agent"),
            request_id: request
                .header("x-request-id")
                .or_else(|| Some(uuid::Uuid::new_v4().to_string())),
            authority: done.authority.clone().or_else(|| request.host().map(str::to_owned)),
        }),
        response_code: done.response.status,
        flags: done.flags.clone(),
        response_code_details: Some(done.details.clone()),
        upstream_transport_failure_reason: done.transport.clone(),
        bytes_sent: done.response.body.len() as u64,
        duration: done.duration,
        upstream_host: done.upstream,
        upstream_cluster: done.cluster.clone(),
        upstream_local_address: done
            .upstream
            .filter(|_| done.connected)
            .map(|upstream| near(upstream, UPSTREAM_PORT)),
        route_name: decision.route.clone(),
        reason: done.reason.unwrap_or(decision.reason),
        more: More {
            request_headers: request.headers.clone(),
            response_headers: done.response.headers.clone(),
            request_duration: Some(Duration::ZERO),
            response_duration: done.service_time,
            upstream_protocol: done
                .seen
                .as_ref()
                .and_then(|seen| seen.version)
                .map(|version| if version == "2" { "HTTP/2" } else { "HTTP/1.1" }),
            attempts: (done.attempts > 0).then_some(done.attempts),
            ..More::default()
        },
        ..Record::new(origin.accepted_wall, origin.dst.addr(), origin.src)
    }
}
