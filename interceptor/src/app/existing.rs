//! Connections that were open before the hooks were (T-7): nobody judged them. They are cut, or kept
//! where `--keep-existing` or a bypassed network says so. What cannot be cut is named.
//!
//! Which ones those are, the kernel tells: what a hook let go, or saw accepted, has a state in its
//! socket. What has none gets nothing out of the namespace from the moment of the attach on; cutting
//! lets both ends know.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::IpAddr;

use interceptor_common::{SocketState, Tier};
use ipnet::IpNet;

use super::by_cgroup::HostPod;
use super::covered::CoveredNamespace;
use super::cut::{Covered, allows};
use super::enrol::Enrolled;
use super::handler::Running;
use crate::account::{Flag, Record};
use crate::clock;
use crate::decide::{ClusterName, Reason};
use crate::kernel::{TableError, Tables, socket_state};
use crate::netns::NetNs;
use crate::netns::diag::{Connected, Diag, Transport};
use crate::policy::Enforcement;
use crate::workloads::cgroup::Cgroup;

/// After cutting, connections are looked for again, until there are none or so often.
const ROUNDS: usize = 4;

/// So many have a line of their own on standard error; the access log has all.
const LINES: usize = 20;

/// Field 8 of the access log's lines.
const WHY: &str = "open_before_attach";

/// What is done with connections that nobody judged.
#[derive(Debug)]
pub(super) struct Existing {
    /// `--keep-existing`.
    keep: bool,
    /// Where connections may go unjudged anyway.
    bypass: Vec<IpNet>,
    cgroups: Vec<Cgroup>,
    /// Our own and that of daemons which drain; they may lie below a covered one.
    daemons: [Cgroup; 2],
    /// No hook was attached before: UDP sockets with a peer are from a time without us, too.
    fresh: bool,
    /// Cookies of those that a predecessor keeps: they stay so, and have their lines.
    inherited: HashSet<u64>,
    /// Cookies of sockets whose SYN was under way when the hooks came. One that met a SYN of its peer
    /// looks accepted to the hooks.
    dialling: HashSet<u64>,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Cut,
    /// It could not be ended; the hooks drop what it sends.
    Muted,
}

impl Existing {
    pub(super) fn new(
        keep: bool,
        bypass: &[IpNet],
        cgroups: &[Cgroup],
        daemons: [&Cgroup; 2],
        fresh: bool,
    ) -> Self {
        Self {
            keep,
            bypass: bypass.to_vec(),
            cgroups: cgroups.to_vec(),
            daemons: daemons.map(Clone::clone),
            fresh,
            inherited: HashSet::new(),
            dialling: HashSet::new(),
        }
    }

    /// Directly before the attach, with routes in the tables: what is kept loses no packet. `succeeds`:
    /// what is kept already, by the daemon of before, stays so.
    pub(super) fn prepare<'n>(
        &mut self,
        places: impl Iterator<Item = &'n Enrolled>,
        tables: &mut Tables,
        succeeds: bool,
    ) -> Result<(), TableError> {
        let mut stale = tables.kept();
        let all = self.ours(None);
        for Enrolled { netns, pod, .. } in places {
            let own = pod.as_ref().map(|pod| self.ours(Some(pod)));
            let ours = own.as_ref().unwrap_or(&all);
            // A kernel that cannot list them is spoken of in `settle`.
            let found = Diag::open(netns).and_then(|diag| diag.connected(Transport::Tcp, &[]));
            for socket in found.unwrap_or_default() {
                if succeeds && stale.remove(&socket.cookie()) {
                    self.inherited.insert(socket.cookie());
                    continue;
                }
                if !ours.includes(&socket) || stays_inside(netns, &socket, tables) {
                    continue;
                }
                if self.keeps(&socket) {
                    stale.remove(&socket.cookie());
                    // One for which there is no room will be cut.
                    let _ = tables.keep(socket.cookie());
                } else if socket.connecting {
                    self.dialling.insert(socket.cookie());
                }
            }
        }
        stale.into_iter().try_for_each(|socket| tables.unkeep(socket))
    }

    /// At the start, once the hooks are attached: cuts or keeps, says so, and looks again.
    pub(super) fn settle(&self, running: &Running) {
        let mut said = Said::default();
        for covered in running.covered.all().values() {
            for socket in self.kept(running, covered) {
                said.add(running, covered, &socket, Fate::Kept);
            }
        }
        self.settle_new(running, &mut said);
        if self.fresh && !self.keep {
            self.cut_datagrams(running, &mut said);
        }
        said.conclude();
        for warning in self.beyond_reach() {
            eprintln!("interceptor: warning: {warning}");
        }
    }

    /// After a hook was away: what was opened meanwhile.
    pub(super) fn settle_gap(&self, running: &Running) {
        let mut said = Said::default();
        self.settle_new(running, &mut said);
        said.conclude();
    }

    fn settle_new(&self, running: &Running, said: &mut Said) {
        let mut muted = HashSet::new();
        for _ in 0..ROUNDS {
            let mut found = false;
            for covered in running.covered.all().values() {
                // Nothing of it is refused, and so nothing cut.
                if covered.whose().audited {
                    continue;
                }
                let netns = &covered.netns;
                let result = Diag::open(netns).and_then(|diag| {
                    for socket in self.unjudged(running, covered, &diag)? {
                        if muted.contains(&socket.cookie()) {
                            continue;
                        }
                        found = true;
                        let fate = self.end_or_keep(running, &diag, &socket);
                        if fate == Fate::Muted {
                            muted.insert(socket.cookie());
                        }
                        said.add(running, covered, &socket, fate);
                    }
                    Ok(())
                });
                if let Err(error) = result {
                    eprintln!(
                        "interceptor: warning: connections that were open before cannot be listed in \
                         network namespace {}: {error}; nothing leaves by them, but nobody is told",
                        netns.label()
                    );
                }
            }
            if !found {
                return;
            }
        }
    }

    fn end_or_keep(&self, running: &Running, diag: &Diag, socket: &Connected) -> Fate {
        if self.keeps(socket) && running.kernel.tables().keep(socket.cookie()).is_ok() {
            return Fate::Kept;
        }
        match diag.destroy(socket) {
            Ok(_) => Fate::Cut,
            Err(_) => Fate::Muted,
        }
    }

    /// Connections out of the namespace that no hook let go, nor saw accepted, nor we kept.
    fn unjudged(
        &self,
        running: &Running,
        covered: &CoveredNamespace,
        diag: &Diag,
    ) -> std::io::Result<Vec<Connected>> {
        let found = diag.connected(Transport::Tcp, &running.kernel.socket_storage())?;
        let tables = running.kernel.tables();
        let unjudged = |socket: &Connected| match socket_state(&socket.storage) {
            None => !tables.is_kept(socket.cookie()),
            Some(SocketState { tier, .. }) => {
                tier == Tier::Accepted as u8 && self.dialling.contains(&socket.cookie())
            }
        };
        let mut found: Vec<_> = found
            .into_iter()
            .filter(|socket| unjudged(socket) && !stays_inside(&covered.netns, socket, &tables))
            .collect();
        if !found.is_empty() {
            let ours = self.ours(covered.pod.as_ref());
            found.retain(|socket| ours.includes(socket));
        }
        Ok(found)
    }

    fn kept(&self, running: &Running, covered: &CoveredNamespace) -> Vec<Connected> {
        let maps = running.kernel.socket_storage();
        let found =
            Diag::open(&covered.netns).and_then(|diag| diag.connected(Transport::Tcp, &maps));
        let tables = running.kernel.tables();
        let mut found = found.unwrap_or_default();
        let own = covered.pod.as_ref().map(|pod| self.ours(Some(pod)));
        found.retain(|socket| own.as_ref().is_none_or(|own| own.includes(socket)));
        found.retain(|socket| {
            socket_state(&socket.storage).is_none()
                && tables.is_kept(socket.cookie())
                && !self.inherited.contains(&socket.cookie())
        });
        found
    }

    /// UDP sockets with a peer that nothing allows. The hooks judge each datagram of every socket,
    /// so the others need nothing.
    fn cut_datagrams(&self, running: &Running, said: &mut Said) {
        let all = self.ours(None);
        for covered in running.covered.all().values() {
            let (netns, whose) = (&covered.netns, covered.whose());
            if whose.audited {
                continue;
            }
            let own = covered.pod.as_ref().map(|pod| self.ours(Some(pod)));
            let ours = own.as_ref().unwrap_or(&all);
            let tenant = &whose.tenant;
            let snapshot = tenant.policy();
            let Ok(diag) = Diag::open(netns) else { continue };
            for socket in diag.connected(Transport::Udp, &[]).unwrap_or_default() {
                let inside = stays_inside(netns, &socket, &running.kernel.tables());
                let allowed = allows(&snapshot, socket.peer)
                    || tenant.rules.resolvers.contains(&socket.peer)
                    || self.keeps(&socket);
                if !inside && !allowed && ours.made(&socket) {
                    let fate = diag.destroy(&socket).map_or(Fate::Muted, |_| Fate::Cut);
                    said.add(running, covered, &socket, fate);
                }
            }
        }
    }

    fn keeps(&self, socket: &Connected) -> bool {
        self.keep || self.bypass.iter().any(|net| net.contains(&socket.peer.ip()))
    }

    /// `pod`: this one's alone.
    fn ours(&self, pod: Option<&HostPod>) -> Ours {
        let cgroups = pod.map_or(&*self.cgroups, |pod| std::slice::from_ref(&pod.cgroup));
        Ours {
            covered: Covered::new(cgroups),
            daemons: self.daemons.each_ref().map(|daemon| daemon.id().ok()),
            held: self.processes(cgroups).into_iter().flat_map(sockets_of).collect(),
        }
    }

    /// The processes of cgroups, ourselves left out.
    fn processes(&self, cgroups: &[Cgroup]) -> Vec<u32> {
        let own: Vec<u32> =
            self.daemons.iter().filter_map(|daemon| daemon.procs().ok()).flatten().collect();
        let mut found: Vec<u32> =
            cgroups.iter().filter_map(|cgroup| cgroup.procs().ok()).flatten().collect();
        found.retain(|pid| !own.contains(pid));
        found
    }

    /// Sockets of covered processes that nothing here can end: below IP nobody judges what they send.
    fn beyond_reach(&self) -> Vec<String> {
        let mut found: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for pid in self.processes(&self.cgroups) {
            let held: HashSet<u32> = sockets_of(pid).collect();
            for (table, what) in [("packet", "packet"), ("raw", "raw"), ("raw6", "raw")] {
                let listed = fs::read_to_string(format!("/proc/{pid}/net/{table}"));
                if inodes(table, &listed.unwrap_or_default()).any(|inode| held.contains(&inode)) {
                    found.entry(what).or_default().push(pid);
                }
            }
        }
        let text = |(what, mut pids): (&str, Vec<u32>)| {
            pids.dedup();
            let pids = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!(
                "processes of the covered cgroups have {what} sockets from before (pid {pids}), which \
                 cannot be cut; {}",
                match what {
                    "packet" => "what they send is not seen: end those programs, or restart them",
                    _ => "what they send is judged packet by packet, if they were made there",
                }
            )
        };
        found.into_iter().map(text).collect()
    }
}

/// Which sockets are covered programs'.
struct Ours {
    covered: Covered,
    daemons: [Option<u64>; 2],
    /// Inodes of those that covered processes hold.
    held: HashSet<u32>,
}

impl Ours {
    /// Made in a covered cgroup, or held by a process there.
    fn includes(&self, socket: &Connected) -> bool {
        self.made(socket) || self.held.contains(&socket.inode)
    }

    /// Made in a covered cgroup: the hooks see it.
    fn made(&self, socket: &Connected) -> bool {
        !self.daemons.contains(&Some(socket.cgroup)) && self.covered.includes(socket.cgroup)
    }
}

/// The inode column of a table in /proc/PID/net.
fn inodes<'t>(table: &str, listed: &'t str) -> impl Iterator<Item = u32> + use<'t> {
    let column = if table == "packet" { 8 } else { 9 };
    listed.lines().skip(1).filter_map(move |line| line.split_whitespace().nth(column)?.parse().ok())
}

/// Inodes of the sockets that a process holds. One that ended meanwhile holds none.
fn sockets_of(pid: u32) -> impl Iterator<Item = u32> {
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    listed.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

fn stays_inside(netns: &NetNs, socket: &Connected, tables: &Tables) -> bool {
    let peer: IpAddr = socket.peer.ip();
    tables.stays_inside(netns.cookie(), peer)
}

/// What was said of one look.
#[derive(Debug, Default)]
struct Said {
    lines: usize,
    cut: usize,
    kept: usize,
}

impl Said {
    fn add(
        &mut self,
        running: &Running,
        covered: &CoveredNamespace,
        socket: &Connected,
        fate: Fate,
    ) {
        let mut record = record(running, socket, fate);
        record.more.pod.clone_from(&covered.whose().workload.pod);
        running.log.write(record);
        match fate {
            Fate::Kept => self.kept += 1,
            Fate::Cut | Fate::Muted => self.cut += 1,
        }
        self.lines += 1;
        if self.lines > LINES {
            return;
        }
        let Connected { local, peer, transport, .. } = socket;
        let transport = match transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        };
        let what = match fate {
            Fate::Kept => "kept, judged by nobody",
            Fate::Cut => "cut",
            Fate::Muted => "cannot be cut by this kernel; what it sends is dropped",
        };
        eprintln!("interceptor: {transport} {local} to {peer} was open before the attach: {what}");
    }

    fn conclude(&self) {
        if self.lines > LINES {
            eprintln!("interceptor: and {} more, see the access log", self.lines - LINES);
        }
        if self.cut > 0 {
            eprintln!(
                "interceptor: {} connections that were open before the attach are cut; \
                 --keep-existing lets such go on",
                self.cut
            );
        }
        if self.kept > 0 {
            eprintln!(
                "interceptor: {} connections that were open before the attach go on unjudged",
                self.kept
            );
        }
    }
}

fn record(running: &Running, socket: &Connected, fate: Fate) -> Record {
    let mut record = Record::new(clock::wall(), socket.peer, socket.local);
    if fate == Fate::Kept {
        record.upstream_host = Some(socket.peer);
        record.reason = Reason::Bypassed;
    } else {
        record.upstream_cluster = Some(ClusterName::black_hole());
        record.flags = vec![Flag::UH];
        record.reason = Reason::NoPolicy;
    }
    if running.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(Cow::Borrowed(WHY));
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_found_in_the_kernels_tables() {
        let packet = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                      0000000000000000 3      2    0003   0     1 0      0      4711  \n";
        assert_eq!(inodes("packet", packet).collect::<Vec<_>>(), [4711]);
        let raw = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
                   timeout inode ref pointer drops\n   1: 00000000:0001 00000000:0000 07 00000000:00000000 \
                   00:00000000 00000000     0        0 4712 2 0000000000000000 0\n";
        assert_eq!(inodes("raw", raw).collect::<Vec<_>>(), [4712]);
    }

    #[test]
    fn the_sockets_of_a_process_are_those_that_it_holds() {
        use std::os::fd::AsRawFd;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("open");
        let held: Vec<_> = sockets_of(std::process::id()).collect();
        let text = link.to_string_lossy();
        assert!(held.iter().any(|inode| text == format!("socket:[{inode}]")), "{text}: {held:?}");
    }
}
