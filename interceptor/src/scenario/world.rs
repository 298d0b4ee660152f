//! A small model of the world outside: what would be observed if a decision were carried out. It
//! reads decisions, what the client sends, and the case's `network`; it knows no case.
//!
//! Chance is replaced by even spreading: the n-th draw of a kind is the fractional part of n times
//! an irrational, so that shares come out exactly and every run is the same. Repeated flows are a
//! burst: limits see all of them at once, outlier detection sees their answers in order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::case::{Network, Server};
use super::client::Request;
use super::observed::Response;
use super::tls::handshake;
use crate::decide::host::HostName;
use crate::decide::net::is_special;
use crate::decide::route::Destination;
use crate::decide::traffic::{
    HashKey, LoadBalancer, OutlierDetection, TrafficPolicy, UpstreamProtocol,
};
use crate::decide::{Place, Reason, Upstream};

/// What the proxy brings along that no decision says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// MESH-6.
    pub(super) connect_timeout: Duration,
    /// Whether resolved special addresses are dialled (T-40).
    pub(super) dial_special: bool,
    /// Whether the address that the workload dialled is chosen where it is one of a name's
    /// (docs/profiles.md).
    pub(super) heeds_dialled: bool,
    /// Whether a client's `x-envoy-upstream-rq-timeout-ms` is obeyed; else it goes no further.
    pub(super) obeys_client_timeout: bool,
}

/// The world, and what it remembers of the flows so far.
#[derive(Debug)]
pub(super) struct World<'n> {
    network: &'n Network,
    habits: Habits,
    draws: HashMap<Draw, u32>,
    /// Flows under way, by cluster.
    under_way: HashMap<String, u32>,
    /// Answers in a row that count against an endpoint, by cluster and endpoint.
    failures: HashMap<(String, SocketAddr), u32>,
    ejected: HashMap<String, Vec<SocketAddr>>,
}

/// What is drawn for; each has a sequence of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Draw {
    Destination,
    Endpoint,
    Delay,
    Abort,
    Mirror,
}

impl Draw {
    fn step(self) -> f64 {
        match self {
            // Fractional parts of the golden ratio and of the roots of 2, 3, 7 and 11.
            Self::Destination => 0.618_033_988_749_894_8,
            Self::Endpoint => 0.414_213_562_373_095,
            Self::Delay => 0.732_050_807_568_877_2,
            Self::Abort => 0.645_751_311_064_590_6,
            Self::Mirror => 0.316_624_790_355_399_8,
        }
    }
}

/// Why there is nowhere to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nowhere {
    /// No endpoint, or no address: `UH`.
    NoHost,
    /// No such cluster: `NC`.
    NoCluster,
    /// Refused after the decision.
    Refused(Reason),
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Refused by the other side.
    Refused,
    /// No answer to the connect in time.
    ConnectTimeout,
    /// TLS did not come about: Envoy's words for it.
    Tls(&'static str),
    /// TLS could not even begin, for want of what it needs.
    Unready(&'static str),
}

impl Failure {
    /// The transport's own words, if it has any (LOG-3 field 9).
    pub(super) fn transport(&self) -> Option<String> {
        match self {
            Self::Refused => Some("delayed connect error: 111".into()),
            Self::ConnectTimeout => None,
            Self::Tls(why) | Self::Unready(why) => Some(format!(
                "TLS_error:|268435581:SSL routines:OPENSSL_internal:{why}:TLS_error_end"
            )),
        }
    }

    /// The reset reason in LOG-20 and LOG-21.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Refused | Self::Tls(_) | Self::Unready(_) => "remote connection failure",
            Self::ConnectTimeout => "connection timeout",
        }
    }
}

/// An endpoint and its share.
type Candidate = (SocketAddr, u32);

impl<'n> World<'n> {
    pub(super) fn new(network: &'n Network, habits: Habits) -> Self {
        Self {
            network,
            habits,
            draws: HashMap::new(),
            under_way: HashMap::new(),
            failures: HashMap::new(),
            ejected: HashMap::new(),
        }
    }

    /// What the proxy brings along.
    pub(super) fn habits(&self) -> Habits {
        self.habits
    }

    /// What the resolver answers; nothing for a name that is not listed.
    pub(super) fn resolve(&self, host: &HostName) -> &'n [IpAddr] {
        let named = self
            .network
            .dns
            .iter()
            .find(|(name, _)| HostName::parse(name).is_ok_and(|name| name == *host));
        named.map_or(&[], |(_, addresses)| addresses.as_slice())
    }

    /// The next draw, in 0..1.
    fn draw(&mut self, kind: Draw) -> f64 {
        let n = self.draws.entry(kind).or_default();
        *n += 1;
        (f64::from(*n) * kind.step()).fract()
    }

    /// Whether this is one of `percent` in a hundred.
    pub(super) fn hits(&mut self, kind: Draw, percent: f64) -> bool {
        self.draw(kind) * 100.0 < percent
    }

    /// One of several destinations, by weight (VS-22, VS-62).
    pub(super) fn pick<'d>(&mut self, destinations: &'d [Destination]) -> &'d Destination {
        if let [only] = destinations {
            return only;
        }
        let draw = self.draw(Draw::Destination);
        by_weight(destinations, draw, |one| one.weight).expect("a decision has a destination")
    }

    /// Takes one place in a cluster, if its limits have one left (DR-10).
    pub(super) fn admit(&mut self, destination: &Destination, http: bool) -> bool {
        let limits = &destination.traffic.limits;
        let connections = match (limits.max_connections, limits.max_pending_requests) {
            (Some(open), pending) if http => Some(open.saturating_add(pending.unwrap_or(u32::MAX))),
            (open, _) if !http => open,
            _ => None,
        };
        let http2 = destination.traffic.protocol == UpstreamProtocol::Http2;
        let streams = limits.max_requests.filter(|_| http);
        let room = match (connections.filter(|_| !http2), streams) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let busy = self.under_way.entry(cluster_key(destination)).or_default();
        let fits = room.is_none_or(|room| *busy < room);
        *busy += u32::from(fits);
        fits
    }

    /// The endpoint that this attempt goes to; `used` were tried before and are avoided.
    pub(super) fn endpoint(
        &mut self,
        destination: &Destination,
        dialled: SocketAddr,
        client: IpAddr,
        request: Option<&Request>,
        used: &[SocketAddr],
    ) -> Result<SocketAddr, Nowhere> {
        let all = self.candidates(&destination.upstream, dialled)?;
        let key = cluster_key(destination);
        let out = self.ejected.get(&key).map_or(&[][..], Vec::as_slice);
        let fit: Vec<Candidate> =
            all.into_iter().filter(|(address, _)| !out.contains(address)).collect();
        let fresh: Vec<Candidate> =
            fit.iter().copied().filter(|(address, _)| !used.contains(address)).collect();
        let left = if fresh.is_empty() { fit } else { fresh };
        if self.habits.heeds_dialled
            && matches!(destination.upstream, Upstream::Dns { .. })
            && matches!(
                destination.traffic.load_balancer,
                LoadBalancer::LeastRequest | LoadBalancer::Passthrough
            )
            && let Some((own, _)) = left.iter().find(|(address, _)| address.ip() == dialled.ip())
        {
            return Ok(*own);
        }
        let draw = match &destination.traffic.load_balancer {
            LoadBalancer::Hash(key) => hashed(key, client, request),
            _ => None,
        };
        let draw = match draw {
            Some(draw) => draw,
            None => self.draw(Draw::Endpoint),
        };
        by_weight(&left, draw, |(_, weight)| *weight).map(|(a, _)| *a).ok_or(Nowhere::NoHost)
    }

    fn candidates(
        &mut self,
        upstream: &Upstream,
        dialled: SocketAddr,
    ) -> Result<Vec<Candidate>, Nowhere> {
        match upstream {
            Upstream::OriginalDst { port, .. } => {
                Ok(vec![(SocketAddr::new(dialled.ip(), *port), 1)])
            }
            Upstream::VerifiedOriginalDst { host, port } => {
                let addresses = self.fit_to_dial(host, *port)?;
                let own = SocketAddr::new(dialled.ip(), *port);
                match addresses.contains(&own) {
                    true => Ok(vec![(own, 1)]),
                    false => Ok(addresses.into_iter().map(|address| (address, 1)).collect()),
                }
            }
            Upstream::Static(endpoints) => {
                Ok(endpoints.iter().map(|one| (one.target, one.weight)).collect())
            }
            Upstream::Dns { endpoints, round_robin } => {
                let mut all = Vec::new();
                let mut failure = Nowhere::NoHost;
                for endpoint in endpoints.iter() {
                    let (place, port) = &endpoint.target;
                    let found = match place {
                        Place::Ip(ip) => Ok(vec![SocketAddr::new(*ip, *port)]),
                        Place::Name(host) => self.fit_to_dial(host, *port),
                    };
                    match found {
                        Ok(mut addresses) => {
                            if *round_robin {
                                addresses.truncate(1);
                            }
                            all.extend(addresses.into_iter().map(|a| (a, endpoint.weight)));
                        }
                        Err(why) => failure = why,
                    }
                }
                if all.is_empty() { Err(failure) } else { Ok(all) }
            }
            // The model has no file system.
            Upstream::Unix(_) | Upstream::None => Err(Nowhere::NoHost),
            Upstream::NoCluster => Err(Nowhere::NoCluster),
        }
    }

    /// The addresses of `host` that may be dialled; at least one.
    fn fit_to_dial(&self, host: &HostName, port: u16) -> Result<Vec<SocketAddr>, Nowhere> {
        let found = self.resolve(host);
        let fit: Vec<SocketAddr> = found
            .iter()
            .filter(|ip| self.habits.dial_special || !is_special(**ip))
            .map(|ip| SocketAddr::new(*ip, port))
            .collect();
        match (fit.is_empty(), found.is_empty()) {
            (false, _) => Ok(fit),
            (true, true) => Err(Nowhere::NoHost),
            (true, false) => Err(Nowhere::Refused(Reason::SpecialAddress)),
        }
    }

    /// Connects, and does the TLS that the destination asks for. Takes the time returned.
    pub(super) fn connect(
        &self,
        traffic: &TrafficPolicy,
        name: Option<&str>,
        upstream: SocketAddr,
    ) -> (Duration, Result<(), Failure>) {
        match self.network.server {
            Server::RefusesConnections => (Duration::ZERO, Err(Failure::Refused)),
            Server::DropsSyn => {
                let limit = traffic.connect_timeout.unwrap_or(self.habits.connect_timeout);
                (limit, Err(Failure::ConnectTimeout))
            }
            _ => {
                let tls = traffic.tls.as_deref();
                let done =
                    tls.map_or(Ok(()), |tls| handshake(self.network, tls, name, upstream.port()));
                (Duration::ZERO, done)
            }
        }
    }

    /// The server's answer to a request, and the time it takes. It is the httpbin of the test
    /// world: `/status/N` answers N. On 443 it speaks only TLS, on 80 only plaintext.
    pub(super) fn answer(
        &self,
        port: u16,
        over_tls: bool,
        method: &str,
        host: &str,
        path: &str,
    ) -> (Duration, Response) {
        let text = |status: u16, body: &str| Response {
            status,
            headers: vec![("content-type".into(), "text/plain".into())],
            body: if method == "HEAD" { Vec::new() } else { body.into() },
        };
        let asked = path.strip_prefix("/status/").and_then(|status| status.parse::<u16>().ok());
        let response = if port == 443 && !over_tls {
            text(400, "an HTTP request to an HTTPS server\n")
        } else if self.network.server == Server::RedirectsToHttps && port == 80 && !over_tls {
            let mut redirect = text(301, "");
            redirect.headers.push(("location".into(), format!("https://{host}{path}")));
            redirect
        } else if let Some(status) = asked.filter(|status| (100..600).contains(status)) {
            text(status, "")
        } else {
            text(200, "ok\n")
        };
        (self.delay(), response)
    }

    /// How long the server takes.
    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.network.server_delay_ms)
    }

    /// Whether a client that speaks TLS to the server itself is content with `asked`; else how its
    /// curl ends.
    pub(super) fn client_tls(&self, asked: Option<&str>) -> Result<(), u8> {
        match &self.network.server {
            Server::SelfSigned => Err(60),
            Server::NamedOnly(name) if asked != Some(name.as_str()) => Err(60),
            Server::WantsClientCertificate => Err(56),
            _ => Ok(()),
        }
    }

    /// Counts an outcome for outlier detection (DR-12); `gateway` is 502 to 504 or no connection.
    pub(super) fn outcome(
        &mut self,
        destination: &Destination,
        dialled: SocketAddr,
        endpoint: SocketAddr,
        status: Option<u16>,
    ) {
        let Some(rules) = &destination.traffic.outlier else { return };
        let key = cluster_key(destination);
        let failed = status.is_none_or(|status| status >= 500);
        let count = self.failures.entry((key.clone(), endpoint)).or_default();
        *count = if failed { *count + 1 } else { 0 };
        if threshold(rules, status).is_none_or(|limit| *count < limit) {
            return;
        }
        *count = 0;
        let hosts = self.candidates(&destination.upstream, dialled).map_or(0, |all| all.len());
        let out = self.ejected.entry(key).or_default();
        let allowed = hosts * rules.max_ejection_percent as usize / 100;
        if out.len() < allowed {
            out.push(endpoint);
        }
    }
}

/// How many in a row eject, for a failure of this kind; `None`: it never does.
fn threshold(rules: &OutlierDetection, status: Option<u16>) -> Option<u32> {
    let gateway = status.is_none_or(|status| (502..=504).contains(&status));
    let any = (rules.consecutive_5xx > 0).then_some(rules.consecutive_5xx);
    let gateway_limit = (gateway && rules.consecutive_gateway_errors > 0)
        .then_some(rules.consecutive_gateway_errors);
    match (status, rules.consecutive_local_origin_failures) {
        (None, Some(limit)) => Some(limit),
        _ => any.into_iter().chain(gateway_limit).min(),
    }
}

fn cluster_key(destination: &Destination) -> String {
    destination.cluster.as_ref().map_or_else(String::new, ToString::to_string)
}

/// The item that `draw`, in 0..1, falls on.
fn by_weight<T>(items: &[T], draw: f64, weight: impl Fn(&T) -> u32) -> Option<&T> {
    let total: f64 = items.iter().map(|item| f64::from(weight(item))).sum();
    let mut left = draw * total;
    for item in items {
        left -= f64::from(weight(item));
        if left < 0.0 {
            return Some(item);
        }
    }
    items.last()
}

/// The draw that a hash key stands for: always the same for the same value.
fn hashed(key: &HashKey, client: IpAddr, request: Option<&Request>) -> Option<f64> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let value = match (key, request) {
        (HashKey::SourceIp, _) => Some(client.to_string()),
        (HashKey::Header(name), Some(request)) => request.header(name),
        (HashKey::Query(name), Some(request)) => request.query(name),
        // A client without the cookie is given one, and this client keeps none.
        (HashKey::Cookie { name, .. }, Some(request)) => request.cookie(name),
        _ => None,
    }?;
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    Some((hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64)
}
