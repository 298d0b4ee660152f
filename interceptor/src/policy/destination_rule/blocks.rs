//! `trafficPolicy` and its blocks (DR-6, DR-9, DR-12, DR-13, DR-15, DR-16; DRV-2 to DRV-7, DRV-13).

use std::net::IpAddr;
use std::time::Duration;

use super::super::entry::is_dns_label;
use super::super::fields::{Fields, Located, int, parse_duration, text};
use super::super::node::{Node, Value};
use super::super::service_entry::one_of;
use super::is_number;
use super::reader::{Range, Reader};
use super::tls::Tls;
use crate::decide::traffic::{
    HashKey, Keepalive, Limits, LoadBalancer, OutlierDetection, ProxyProtocol, Tunnel,
};

/// What `portLevelSettings` may say of one port: it stands for the destination's blocks as a whole
/// (DR-6).
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks {
    pub(super) pool: Option<Pool>,
    pub(super) outlier: Option<OutlierDetection>,
    pub(super) balancer: Option<LoadBalancer>,
    pub(super) tls: Option<Tls>,
}

/// A `trafficPolicy`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    pub(super) blocks: Blocks,
    pub(super) tunnel: Option<Tunnel>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// By service port (DR-7); the first of a number counts.
    pub(super) ports: Vec<(u16, Blocks)>,
}

/// `connectionPool` (DR-9).
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) limits: Limits,
    /// `h2UpgradePolicy`; `None` = as the mesh (MESH-12).
    pub(super) upgrade: Option<bool>,
    pub(super) use_client_protocol: bool,
}

impl Policy {
    pub(super) fn read(node: &Located<&Node>, r: &mut Reader<'_>) -> Self {
        let mut f = r.fields(node);
        let (blocks, mut given) = Blocks::read(&mut f, r);
        let items = f.list("portLevelSettings", r.cx, r.out);
        if items.len() > 4096 {
            r.reject(node, "more than 4096 portLevelSettings");
        }
        let ports: Vec<_> = items.iter().filter_map(|item| port_level(item, r)).collect();
        let tunnel = f.take("tunnel");
        let proxy_protocol = f.take("proxyProtocol");
        if let Some(both) = tunnel.as_ref().filter(|_| proxy_protocol.is_some()) {
            r.reject(both, "tunnel and proxyProtocol exclude each other (DRV-3)");
        }
        given |= !items.is_empty() || tunnel.is_some() || proxy_protocol.is_some();
        let tunnel = tunnel.and_then(|node| read_tunnel(&node, r));
        let proxy_protocol = proxy_protocol.map(|node| read_proxy_protocol(&node, r));
        if let Some(budget) = f.take("retryBudget") {
            given = true;
            read_retry_budget(&budget, r);
        }
        f.finish(r.cx, r.out);
        if !given {
            r.reject(node, "a traffic policy needs at least one field (DRV-2)");
        }
        Self { blocks, tunnel, proxy_protocol, ports }
    }
}

impl Blocks {
    /// The blocks, and whether any was there.
    fn read(f: &mut Fields<'_>, r: &mut Reader<'_>) -> (Self, bool) {
        let blocks = Self {
            pool: f.take("connectionPool").map(|node| Pool::read(&node, r)),
            outlier: f.take("outlierDetection").map(|node| read_outlier(&node, r)),
            balancer: f.take("loadBalancer").map(|node| read_balancer(&node, r)),
            tls: f.take("tls").map(|node| Tls::read(&node, r)),
        };
        let given = blocks.pool.is_some()
            || blocks.outlier.is_some()
            || blocks.balancer.is_some()
            || blocks.tls.is_some();
        (blocks, given)
    }

    /// The mesh's `defaultTrafficPolicy`, which knows these two blocks (MESH-18).
    pub(in crate::policy) fn read_default(node: &Located<&Node>, r: &mut Reader<'_>) -> Self {
        let mut f = r.fields(node);
        let blocks = Self {
            pool: f.take("connectionPool").map(|node| Pool::read(&node, r)),
            outlier: f.take("outlierDetection").map(|node| read_outlier(&node, r)),
            ..Self::default()
        };
        f.finish(r.cx, r.out);
        blocks
    }

    /// This with every block that `over` has in its place (DR-6).
    pub(super) fn overridden(&self, over: &Self) -> Self {
        fn pick<T: Clone>(over: &Option<T>, under: &Option<T>) -> Option<T> {
            over.as_ref().or(under.as_ref()).cloned()
        }
        Self {
            pool: pick(&over.pool, &self.pool),
            outlier: pick(&over.outlier, &self.outlier),
            balancer: pick(&over.balancer, &self.balancer),
            tls: pick(&over.tls, &self.tls),
        }
    }
}

/// DRV-2.
fn port_level(node: &Located<&Node>, r: &mut Reader<'_>) -> Option<(u16, Blocks)> {
    let mut f = r.fields(node);
    let number = f.take("port").and_then(|port| {
        let mut inner = r.fields(&port);
        let number = inner.take("number").and_then(|n| int(n, r.cx, r.out));
        inner.finish(r.cx, r.out);
        number
    });
    let (blocks, given) = Blocks::read(&mut f, r);
    f.finish(r.cx, r.out);
    if !given {
        r.reject(node, "a port needs at least one field besides its number (DRV-2)");
    }
    let Some(number) = number else {
        r.reject(node, "port.number is missing (DRV-2)");
        return None;
    };
    r.port(&number).map(|number| (number, blocks))
}

impl Pool {
    /// DRV-4 to DRV-6.
    fn read(node: &Located<&Node>, r: &mut Reader<'_>) -> Self {
        let mut f = r.fields(node);
        let mut pool = Self::default();
        let tcp = f.take("tcp");
        let http = f.take("http");
        if tcp.is_none() && http.is_none() {
            r.reject(node, "needs tcp or http (DRV-4)");
        }
        for part in [&tcp, &http].into_iter().flatten() {
            if matches!(&part.value.value, Value::Map(m) if m.is_empty()) {
                r.reject(part, "is empty (DRV-4)");
            }
        }
        if let Some(tcp) = tcp {
            pool.read_tcp(&tcp, r);
        }
        if let Some(http) = http {
            pool.read_http(&http, r);
        }
        f.finish(r.cx, r.out);
        pool
    }

    fn read_tcp(&mut self, node: &Located<&Node>, r: &mut Reader<'_>) {
        let mut f = r.fields(node);
        self.limits.max_connections = r.limit(&mut f, "maxConnections");
        self.connect_timeout = r.duration(&mut f, "connectTimeout", Range::UpToHour);
        self.limits.max_connection_duration =
            r.duration(&mut f, "maxConnectionDuration", Range::Positive);
        self.limits.tcp_idle_timeout = r.duration(&mut f, "idleTimeout", Range::OrZero);
        self.keepalive = f.take("tcpKeepalive").map(|node| {
            let mut f = r.fields(&node);
            let keepalive = Keepalive {
                probes: r.number(&mut f, "probes").map(|n| n.value),
                time: r.duration(&mut f, "time", Range::Positive),
                interval: r.duration(&mut f, "interval", Range::Positive),
            };
            f.finish(r.cx, r.out);
            keepalive
        });
        f.finish(r.cx, r.out);
    }

    fn read_http(&mut self, node: &Located<&Node>, r: &mut Reader<'_>) {
        let mut f = r.fields(node);
        let limits = &mut self.limits;
        limits.max_pending_requests = r.limit(&mut f, "http1MaxPendingRequests");
        limits.max_requests = r.limit(&mut f, "http2MaxRequests");
        limits.max_requests_per_connection = r.limit(&mut f, "maxRequestsPerConnection");
        limits.max_retries = r.limit(&mut f, "maxRetries");
        limits.http_idle_timeout = r.duration(&mut f, "idleTimeout", Range::Positive);
        limits.max_concurrent_streams = r.limit(&mut f, "maxConcurrentStreams");
        let upgrade = r.text(&mut f, "h2UpgradePolicy");
        let names = [("DEFAULT", None), ("DO_NOT_UPGRADE", Some(false)), ("UPGRADE", Some(true))];
        self.upgrade = one_of(upgrade, &names, r.cx, r.out).flatten();
        self.use_client_protocol = r.flag(&mut f, "useClientProtocol");
        if self.upgrade == Some(true) && self.use_client_protocol {
            r.reject(node, "h2UpgradePolicy UPGRADE excludes useClientProtocol (DRV-6)");
        }
        if let Some(node) = f.take("http2KeepAlive") {
            let mut f = r.fields(&node);
            let interval = r.duration(&mut f, "interval", Range::Positive);
            let timeout = r.duration(&mut f, "timeout", Range::Positive);
            f.finish(r.cx, r.out);
            if interval.is_none() || timeout.is_none() {
                r.reject(&node, "needs interval and timeout, each at least 1ms (DRV-5)");
            }
            self.limits.http2_keepalive = interval.zip(timeout);
        }
        f.finish(r.cx, r.out);
    }
}

/// DR-12 with its defaults; DRV-7.
fn read_outlier(node: &Located<&Node>, r: &mut Reader<'_>) -> OutlierDetection {
    let mut f = r.fields(node);
    if let Some(old) = r.number(&mut f, "consecutiveErrors")
        && old.value > 0
    {
        let message = "deprecated and without effect; use consecutiveGatewayErrors or \
                       consecutive5xxErrors";
        r.warn(&old, message);
    }
    let split = r.flag(&mut f, "splitExternalLocalOriginErrors");
    let local = r.number(&mut f, "consecutiveLocalOriginFailures");
    if let Some(local) = local.as_ref().filter(|local| local.value > 0 && !split) {
        r.reject(local, "needs splitExternalLocalOriginErrors: true (DRV-7)");
    }
    let count = |found: Option<Located<u32>>, default| found.map_or(default, |n| n.value);
    let outlier = OutlierDetection {
        consecutive_5xx: count(r.number(&mut f, "consecutive5xxErrors"), 5),
        consecutive_gateway_errors: count(r.number(&mut f, "consecutiveGatewayErrors"), 0),
        consecutive_local_origin_failures: split.then(|| count(local, 5)),
        interval: r
            .duration(&mut f, "interval", Range::Positive)
            .unwrap_or(Duration::from_secs(10)),
        base_ejection_time: r
            .duration(&mut f, "baseEjectionTime", Range::Positive)
            .unwrap_or(Duration::from_secs(30)),
        max_ejection_percent: match r.percent(&mut f, "maxEjectionPercent") {
            // As in protocol buffers, 0 is not told from absent.
            None | Some(0) => 10,
            Some(percent) => percent,
        },
        min_health_percent: r.percent(&mut f, "minHealthPercent").unwrap_or(0),
    };
    f.finish(r.cx, r.out);
    outlier
}

/// `loadBalancer.simple`.
const SIMPLE: [(&str, &LoadBalancer); 6] = [
    ("UNSPECIFIED", &LoadBalancer::LeastRequest),
    ("LEAST_CONN", &LoadBalancer::LeastRequest),
    ("LEAST_REQUEST", &LoadBalancer::LeastRequest),
    ("RANDOM", &LoadBalancer::Random),
    ("ROUND_ROBIN", &LoadBalancer::RoundRobin),
    ("PASSTHROUGH", &LoadBalancer::Passthrough),
];

/// DR-13; DRV-13.
fn read_balancer(node: &Located<&Node>, r: &mut Reader<'_>) -> LoadBalancer {
    let mut f = r.fields(node);
    let simple = r.text(&mut f, "simple");
    let hash = f.take("consistentHash");
    if let Some(both) = hash.as_ref().filter(|_| simple.is_some()) {
        r.reject(both, "simple and consistentHash exclude each other");
    }
    let simple = one_of(simple, &SIMPLE, r.cx, r.out).cloned();
    let hash = hash.and_then(|node| read_hash(&node, r)).map(LoadBalancer::Hash);
    read_warmup(&mut f, r);
    if let Some(locality) = f.take("localityLbSetting") {
        read_locality(&locality, r);
    }
    f.finish(r.cx, r.out);
    hash.or(simple).unwrap_or_default()
}

/// `warmup` and its old form: read, and without effect.
fn read_warmup(f: &mut Fields<'_>, r: &mut Reader<'_>) {
    let message = "has no effect here: new endpoints get their full share at once";
    let old = f.take("warmupDurationSecs");
    if let Some(old) = old.as_ref().and_then(|node| text(node.clone(), r.cx, r.out)) {
        r.check_duration(&old, Range::Positive);
        r.warn(&old, message);
    }
    let Some(warmup) = f.take("warmup") else { return };
    if old.is_some() {
        r.reject(&warmup, "warmup and warmupDurationSecs exclude each other");
    }
    let mut inner = r.fields(&warmup);
    if !inner.has("duration") {
        r.reject(&warmup, "duration is missing");
    }
    r.duration(&mut inner, "duration", Range::Positive);
    for number in ["minimumPercent", "aggression"] {
        inner.take(number);
    }
    inner.finish(r.cx, r.out);
    r.warn(&warmup, message);
}

/// DRV-13.
fn read_hash(node: &Located<&Node>, r: &mut Reader<'_>) -> Option<HashKey> {
    let mut f = r.fields(node);
    let header = r.filled(&mut f, "httpHeaderName").map(|n| HashKey::Header(n.value));
    let query = r.filled(&mut f, "httpQueryParameterName").map(|n| HashKey::Query(n.value));
    let source = r.flag(&mut f, "useSourceIp").then_some(HashKey::SourceIp);
    let cookie = f.take("httpCookie").and_then(|node| read_cookie(&node, r));
    let old_size = r.number(&mut f, "minimumRingSize").filter(|size| size.value > 0);
    let ring = f.take("ringHash");
    let maglev = f.take("maglev");
    if let Some(ring) = &ring {
        let mut inner = r.fields(ring);
        r.number(&mut inner, "minimumRingSize");
        inner.finish(r.cx, r.out);
    }
    if let Some(maglev) = &maglev {
        let mut inner = r.fields(maglev);
        match r.number(&mut inner, "tableSize") {
            Some(size) if size.value < 5_000_011 && is_prime(size.value) => {}
            Some(size) => r.reject(&size, "not a prime number below 5000011 (DRV-13)"),
            None => r.reject(maglev, "tableSize is missing (DRV-13)"),
        }
        inner.finish(r.cx, r.out);
    }
    if let (Some(_), Some(second)) = (&ring, &maglev) {
        r.reject(second, "ringHash and maglev exclude each other");
    }
    if let Some(old) = old_size {
        r.warn(&old, "deprecated; use ringHash.minimumRingSize");
        if ring.is_some() || maglev.is_some() {
            r.reject(&old, "excludes ringHash and maglev");
        }
    }
    f.finish(r.cx, r.out);
    let mut keys = [header, cookie, source, query].into_iter().flatten();
    let first = keys.next();
    if keys.next().is_some() {
        r.reject(node, "more than one thing to hash");
    }
    if first.is_none() && r.good {
        r.reject(
            node,
            "nothing to hash: give a header, cookie, query parameter or source IP (DRV-13)",
        );
    }
    first
}

fn read_cookie(node: &Located<&Node>, r: &mut Reader<'_>) -> Option<HashKey> {
    let mut f = r.fields(node);
    let name = r.filled(&mut f, "name");
    let path = r.filled(&mut f, "path").map(|path| path.value);
    let ttl = r.text(&mut f, "ttl").map(|text| (parse_duration(&text.value), text));
    f.finish(r.cx, r.out);
    let ttl = match ttl {
        None => {
            r.reject(node, "ttl is missing (DRV-13)");
            None
        }
        Some((None, text)) => {
            r.reject(&text, format!("\"{}\" is not a duration (DRV-13)", text.value));
            None
        }
        Some((ttl, _)) => ttl,
    };
    let Some(name) = name else {
        r.reject(node, "name is missing (DRV-13)");
        return None;
    };
    Some(HashKey::Cookie { name: name.value, path, ttl })
}

fn is_prime(number: u32) -> bool {
    let factors = (2..).take_while(|factor| factor * factor <= number);
    number > 1 && factors.into_iter().all(|factor| !number.is_multiple_of(factor))
}

/// `localityLbSetting`: checked as Istio does, and without effect.
fn read_locality(node: &Located<&Node>, r: &mut Reader<'_>) {
    let mut f = r.fields(node);
    f.boolean("enabled", r.cx, r.out);
    let distribute = f.list("distribute", r.cx, r.out);
    let failover = f.list("failover", r.cx, r.out);
    f.texts("failoverPriority", r.cx, r.out);
    if !distribute.is_empty() && !failover.is_empty() {
        r.reject(node, "distribute and failover exclude each other");
    }
    for item in &distribute {
        let mut inner = r.fields(item);
        r.text(&mut inner, "from");
        let shares = inner.entries("to", r.cx, r.out).unwrap_or_default();
        let shares: Vec<i64> =
            shares.into_iter().filter_map(|(_, n)| int(n, r.cx, r.out)).map(|n| n.value).collect();
        let total = shares.iter().fold(0_i64, |sum, share| sum.saturating_add(*share));
        if total != 100 || shares.iter().any(|share| *share <= 0) {
            r.reject(item, "the weights must be positive and sum up to 100");
        }
        inner.finish(r.cx, r.out);
    }
    for item in &failover {
        let mut inner = r.fields(item);
        let (from, to) = (r.filled(&mut inner, "from"), r.filled(&mut inner, "to"));
        if from.map(|n| n.value) == to.map(|n| n.value) {
            r.reject(item, "from and to must be two regions");
        }
        inner.finish(r.cx, r.out);
    }
    f.finish(r.cx, r.out);
    r.warn(node, "has no effect here: all endpoints are equally near");
}

/// DR-15; DRV-3.
fn read_tunnel(node: &Located<&Node>, r: &mut Reader<'_>) -> Option<Tunnel> {
    let mut f = r.fields(node);
    let protocol = r.text(&mut f, "protocol");
    let post = protocol.as_ref().is_some_and(|protocol| protocol.value == "POST");
    if let Some(other) = protocol.filter(|p| !matches!(p.value.as_str(), "" | "CONNECT" | "POST")) {
        r.reject(&other, format!("\"{}\" is neither CONNECT nor POST (DRV-3)", other.value));
    }
    let host = r.filled(&mut f, "targetHost");
    let port = f.int("targetPort", r.cx, r.out);
    f.finish(r.cx, r.out);
    if let Some(bad) = host.as_ref().filter(|host| !is_target(&host.value)) {
        r.reject(
            bad,
            format!("\"{}\" is neither a host name nor an IP address (DRV-3)", bad.value),
        );
    }
    for (missing, field) in [(host.is_none(), "targetHost"), (port.is_none(), "targetPort")] {
        if missing {
            r.reject(node, format!("{field} is missing (DRV-3)"));
        }
    }
    Some(Tunnel { post, host: host?.value, port: r.port(&port?)? })
}

fn is_target(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok()
        || host.len() <= 255
            && name.split('.').all(is_dns_label)
            && !name.rsplit('.').next().is_some_and(is_number)
}

/// DR-16.
fn read_proxy_protocol(node: &Located<&Node>, r: &mut Reader<'_>) -> ProxyProtocol {
    let mut f = r.fields(node);
    let version = r.text(&mut f, "version");
    f.finish(r.cx, r.out);
    let names = [("V1", ProxyProtocol::V1), ("V2", ProxyProtocol::V2)];
    one_of(version, &names, r.cx, r.out).unwrap_or(ProxyProtocol::V1)
}

/// `retryBudget`: read, and without effect.
fn read_retry_budget(node: &Located<&Node>, r: &mut Reader<'_>) {
    let mut f = r.fields(node);
    f.take("percent");
    r.number(&mut f, "minRetryConcurrency");
    f.finish(r.cx, r.out);
    r.warn(node, "has no effect here; limit retries with connectionPool.http.maxRetries");
}
