//! What `interceptor status` says.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::act::door::ProxyState;

/// The state of a running interceptor. Its `Display` is for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatusReport {
    /// Its name.
    pub name: String,
    /// The daemon's process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// `strict` or `istio`.
    pub enforcement: String,
    /// `ALLOW_ANY` or `REGISTRY_ONLY`.
    pub outbound: String,
    /// The number of the policy in force: rises with each change.
    pub generation: u64,
    /// Whether connections that need no proxy go direct.
    #[serde(default)]
    pub fast_path: bool,
    /// What may still go direct while no daemon lives: `direct-tier` or `closed`.
    #[serde(default)]
    pub on_daemon_loss: String,
    /// What somebody took away and the daemon put back.
    #[serde(default)]
    pub repairs: Repairs,
    /// Connections so far, by the way that they took.
    #[serde(default)]
    pub tiers: Tiers,
    /// Why connections came to the proxy: how many for each reason.
    #[serde(default)]
    pub why_proxy: BTreeMap<String, u64>,
    /// How the last change of the policy files went; `None` before the first.
    #[serde(default)]
    pub last_reload: Option<LastReload>,
    /// What a gateway has, and others do not.
    #[serde(default)]
    pub gateway: Option<GatewayState>,
    /// Kernel programs and where they are.
    pub attachments: Vec<Attachment>,
    /// Network namespaces with a listener.
    pub namespaces: Vec<Namespace>,
    /// Pods that were meant to be covered and are not.
    #[serde(default)]
    pub uncovered: Vec<Uncovered>,
    /// Kernel tables.
    pub tables: Vec<Table>,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Intercepted connections.
    pub connections: Connections,
    /// How full each limit is that a workload can reach.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// Egress proxies that were used, in each namespace.
    #[serde(default)]
    pub egress_proxies: Vec<ProxyState>,
    /// Changes of the policy files so far.
    #[serde(default)]
    pub reloads: Reloads,
    /// Records so far (connections, requests, refusals), by reason.
    #[serde(default)]
    pub records: BTreeMap<String, u64>,
    /// The same of each pod, where the workloads are pods.
    #[serde(default)]
    pub pods: Vec<PodRecords>,
    /// Access-log lines lost because the log could not keep up.
    pub access_log_dropped: u64,
    /// Networks that connect directly.
    pub bypass: Vec<String>,
    /// DNS servers that the workload may ask.
    pub resolvers: Vec<String>,
}

/// What a gateway has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GatewayState {
    /// Where it takes connections in.
    pub listens: Vec<String>,
    /// Nodes in its table; none: it is dialled.
    pub nodes: Option<u64>,
    /// Connections of nodes that are open.
    pub connected: Option<u64>,
}

/// Connections so far, by the way that they took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tiers {
    /// Direct by an operator's CIDR.
    pub bypass: u64,
    /// Direct by their address.
    pub direct: u64,
    /// Direct to where they had to show a name first.
    pub name: u64,
    /// To the proxy.
    pub proxy: u64,
}

/// Hooks, links and pins that were taken away by somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Repairs {
    /// Put back since the start.
    pub count: u64,
    /// Still away, as of the last look.
    pub failing: u64,
    /// What was said last.
    pub last: Option<String>,
}

/// One change of the policy files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LastReload {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Whether the changed files became policy.
    pub accepted: bool,
    /// What changed, or what is wrong.
    pub message: String,
}

/// One kernel program at one hook.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// `connect4`, ...
    pub hook: String,
    /// The cgroup's directory, or the interface.
    pub target: String,
    /// As bpftool shows it.
    pub program_id: u32,
    /// Whether the link outlives the daemon.
    pub pinned: bool,
}

/// One network namespace with a listener.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Namespace {
    /// How people call it.
    pub label: String,
    /// `enforce`, or `audit`: what would be refused passes, and is told.
    #[serde(default)]
    pub mode: String,
    /// The kernel's number for it.
    pub cookie: u64,
    /// Listening address, where IPv4 is covered.
    pub listener_v4: Option<String>,
    /// Listening address, where IPv6 is covered; without one it is refused.
    pub listener_v6: Option<String>,
    /// The daemon's ends of its veths, on which the interface layer stands.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// What leads out of it without the interface layer, and why; none: it has both layers.
    #[serde(default)]
    pub gaps: Vec<String>,
    /// What its cover cannot hold for what it is (a pod with `hostNetwork`, a privileged one). Nobody can
    /// mend that but its owner, so it does not count against being ready.
    #[serde(default)]
    pub limits: Vec<String>,
}

/// A pod that was meant to be covered and is not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Uncovered {
    /// `shop/web-0`.
    pub pod: String,
    /// Why.
    pub why: String,
}

impl Namespace {
    /// Which layers it has, in words.
    fn layers(&self) -> String {
        let at = self.interfaces.join(", ");
        let layers = match (self.interfaces.as_slice(), self.gaps.as_slice()) {
            ([], []) if !self.limits.is_empty() => "sockets only".to_owned(),
            (_, []) => format!("both, at {at}"),
            ([], gaps) => format!("sockets only: {}", gaps.join("; ")),
            (_, gaps) => format!("both at {at}, sockets only elsewhere: {}", gaps.join("; ")),
        };
        let limits = self.limits.iter().map(String::as_str);
        std::iter::once(&*layers).chain(limits).collect::<Vec<_>>().join("; ")
    }
}

/// One kernel table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// The map's name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// Intercepted connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connections {
    /// Open now.
    pub active: u64,
    /// Since the start, refused ones included.
    pub total: u64,
    /// Accepts that failed, mostly for want of a file descriptor.
    #[serde(default)]
    pub accept_failures: u64,
}

/// One limit that a workload can reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limit {
    /// As docs/limits.md calls it.
    pub name: String,
    /// Taken now; for a limit of each workload, by the one that has most.
    pub now: u64,
    /// The most that may be.
    pub most: u64,
    /// Connections refused for it so far.
    pub refused: u64,
}

/// Records of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodRecords {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service account that it runs as.
    pub service_account: String,
    /// How many, by reason.
    pub records: BTreeMap<String, u64>,
}

/// Changes of the policy files so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reloads {
    /// Those that became policy.
    pub accepted: u64,
    /// Those that did not.
    pub refused: u64,
}

impl StatusReport {
    /// One JSON object, indented, with the field names of this type.
    ///
    /// # Errors
    /// None with these types.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl LastReload {
    fn text(&self) -> String {
        let verdict = if self.accepted { "accepted" } else { "REFUSED" };
        format!("{verdict} at {}: {}", self.at, self.message)
    }
}

impl fmt::Display for StatusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: &[String]| match items {
            [] => "none".to_owned(),
            items => items.join(", "),
        };
        let connections = self.connections;
        writeln!(f, "interceptor {}: pid {}, up {}", clean(&self.name), self.pid, self.uptime())?;
        let facts = [
            ("enforcement", self.enforcement.clone()),
            ("outbound", self.outbound.clone()),
            ("policy generation", self.generation.to_string()),
            (
                "last reload",
                self.last_reload.as_ref().map_or_else(|| "none".into(), LastReload::text),
            ),
            ("fast path", self.fast_path.to_string()),
            ("on daemon loss", self.on_daemon_loss.clone()),
            ("repairs", self.repairs.to_string()),
            ("by tier", self.tiers.to_string()),
            ("connections", format!("{} open, {} in all", connections.active, connections.total)),
            ("access log", format!("{} lines dropped", self.access_log_dropped)),
            ("resolvers", list(&self.resolvers)),
            ("bypass", list(&self.bypass)),
        ];
        // It covers nothing.
        let no_gateways = ["fast path", "on daemon loss", "repairs", "by tier", "bypass"];
        if let Some(gateway) = &self.gateway {
            writeln!(f, "  {:<17}  {}", "gateway on", clean(&list(&gateway.listens)))?;
            if let (Some(nodes), Some(connected)) = (gateway.nodes, gateway.connected) {
                writeln!(f, "  {:<17}  {nodes} known, {connected} connections", "nodes")?;
            }
        }
        let facts = facts
            .into_iter()
            .filter(|(what, _)| self.gateway.is_none() || !no_gateways.contains(what));
        for (what, value) in facts {
            writeln!(f, "  {what:<17}  {}", clean(&value))?;
        }
        let attachments = self.attachments.iter().map(|at| {
            let pinned = if at.pinned { "yes" } else { "no" };
            [at.hook.clone(), at.program_id.to_string(), pinned.into(), at.target.clone()]
        });
        table(f, ["HOOK", "PROGRAM", "PINNED", "CGROUP OR INTERFACE"], attachments.collect())?;
        let namespaces = self.namespaces.iter().map(|ns| {
            let address = |at: &Option<String>| at.clone().unwrap_or_else(|| "refused".into());
            let cookie = ns.cookie.to_string();
            let (v4, v6) = (address(&ns.listener_v4), address(&ns.listener_v6));
            [ns.label.clone(), ns.mode.clone(), cookie, v4, v6, ns.layers()]
        });
        table(f, ["NAMESPACE", "MODE", "COOKIE", "IPV4", "IPV6", "LAYERS"], namespaces.collect())?;
        let uncovered = self.uncovered.iter().map(|one| [one.pod.clone(), one.why.clone()]);
        table(f, ["NOT COVERED", "WHY"], uncovered.collect())?;
        let tables = self.tables.iter().map(|table| {
            let percent = table.entries.saturating_mul(100).checked_div(table.capacity);
            [
                table.name.clone(),
                table.entries.to_string(),
                table.capacity.to_string(),
                percent.map_or_else(|| "-".into(), |percent| format!("{percent} %")),
            ]
        });
        table(f, ["TABLE", "ENTRIES", "CAPACITY", "FULL"], tables.collect())?;
        let limits = self.limits.iter().map(|limit| {
            [
                limit.name.clone(),
                limit.now.to_string(),
                limit.most.to_string(),
                limit.refused.to_string(),
            ]
        });
        table(f, ["LIMIT", "NOW", "AT MOST", "REFUSED"], limits.collect())?;
        let proxies = self.egress_proxies.iter().map(|proxy| {
            let state = match proxy.rests_ms {
                None => "in use".into(),
                Some(rest) => format!("rests {} s", rest.div_ceil(1000)),
            };
            let (served, failed) = (proxy.served.to_string(), proxy.failed.to_string());
            [proxy.proxy.clone(), state, served, failed, proxy.last.clone().unwrap_or("-".into())]
        });
        let head = ["EGRESS PROXY", "STATE", "SERVED", "FAILED", "LAST FAILURE"];
        table(f, head, proxies.collect())?;
        let why = self.why_proxy.iter().map(|(why, count)| [why.clone(), count.to_string()]);
        table(f, ["PROXIED FOR", "CONNECTIONS"], why.collect())?;
        let records = self.records.iter().map(|(why, count)| [why.clone(), count.to_string()]);
        table(f, ["REASON", "RECORDS"], records.collect())?;
        let pods = self.pods.iter().map(|pod| {
            let records = pod.records.iter().map(|(why, count)| format!("{why} {count}"));
            let records: Vec<_> = records.collect();
            let name = format!("{}/{}", pod.namespace, pod.name);
            [name, pod.service_account.clone(), records.join(", ")]
        });
        table(f, ["POD", "SERVICE ACCOUNT", "RECORDS"], pods.collect())?;
        let counters = self.counters.iter().map(|(name, count)| [name.clone(), count.to_string()]);
        table(f, ["COUNTER", "VALUE"], counters.collect())
    }
}

impl fmt::Display for Repairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.last, self.failing) {
            (None, _) => f.write_str("none needed"),
            (Some(last), 0) => write!(f, "{} made; the last: {last}", self.count),
            (Some(last), failing) => {
                write!(f, "{} made, {failing} FAILING; the last: {last}", self.count)
            }
        }
    }
}

impl fmt::Display for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bypass, direct, name, proxy } = self;
        write!(f, "bypass {bypass}, direct {direct}, name {name}, proxy {proxy}")
    }
}

impl StatusReport {
    /// `2d 3h 04m 05s`, without the leading parts that are 0.
    fn uptime(&self) -> String {
        let (days, rest) = (self.uptime_s / 86_400, self.uptime_s % 86_400);
        let (hours, minutes, seconds) = (rest / 3600, rest / 60 % 60, rest % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => format!("{seconds}s"),
            (0, 0, _) => format!("{minutes}m {seconds:02}s"),
            (0, _, _) => format!("{hours}h {minutes:02}m {seconds:02}s"),
            _ => format!("{days}d {hours}h {minutes:02}m {seconds:02}s"),
        }
    }
}

/// A heading and aligned columns, after an empty line; nothing if there are no rows.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [&str; N],
    rows: Vec<[String; N]>,
) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let head = head.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(head)
        .chain(rows.into_iter().map(|row| row.map(|cell| clean(&cell))))
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    f.write_char('\n')?;
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(widths) {
            write!(line, " {cell:<width$} ")?;
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Names of cgroups and namespaces come from others: nothing in them moves the cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
