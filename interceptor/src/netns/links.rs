//! The ways out of a namespace: its interfaces, and where their other ends are.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use super::NetNs;
use super::netlink::open;

/// The daemon's end of a veth whose other end is in a covered namespace: where the interface layer
/// stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// Its index, in the daemon's namespace.
    pub index: u32,
    /// Its name there.
    pub name: String,
    /// Cookie of the namespace at the other end.
    pub netns: u64,
    /// An address of it besides link-local ones.
    pub address_v6: Option<Ipv6Addr>,
}

/// What leads out of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WaysOut {
    /// Ways on which the interface layer can stand.
    pub gates: Vec<Gate>,
    /// Ways on which it cannot, in words.
    pub gaps: Vec<String>,
}

impl WaysOut {
    /// Looks at every interface of a namespace. A gate that there was `before` is one as long as the
    /// interface lives: who moves the other end on does not get past the layer by that.
    ///
    /// # Errors
    /// Netlink's.
    pub async fn of(netns: &NetNs, before: &[Gate]) -> io::Result<Self> {
        if netns.is_home() {
            let gaps = vec!["it is the namespace of the daemon itself".to_owned()];
            return Ok(Self { gates: Vec::new(), gaps });
        }
        let inside = links(&open(netns)?).await?;
        let home = open(&NetNs::current()?)?;
        // None: no interface there has its other end here.
        let number = number_of(home.clone(), netns).await?;
        let mut gates = Vec::new();
        let mut peers = Vec::new();
        for link in links(&home).await?.into_iter().filter(Link::is_veth) {
            let leads_there = number.is_some() && link.in_namespace == number;
            if leads_there && let Some(peer) = link.other_end {
                peers.push((peer, link.index));
            } else if before.iter().all(|gate| gate.index != link.index) {
                continue;
            }
            let address_v6 = global_v6(&home, link.index).await?;
            let netns = netns.cookie();
            gates.push(Gate { index: link.index, name: link.name, netns, address_v6 });
        }
        Ok(Self { gaps: gaps(&inside, &peers), gates })
    }
}

/// What leads out by no gate. `peers`: the gates' other ends, and the gates.
fn gaps(inside: &[Link], peers: &[(u32, u32)]) -> Vec<String> {
    let covered =
        |link: &Link| link.other_end.is_some_and(|end| peers.contains(&(link.index, end)));
    let elsewhere = |link: &&Link| {
        // What is in no other namespace and stands for no device leads out by one that is looked at.
        let leads_out = link.in_namespace.is_some() || link.kind.is_none();
        !link.loopback && leads_out && !covered(link)
    };
    let why = |link: &Link| {
        let name = &link.name;
        if link.is_veth() {
            format!("the other end of {name} is not in the daemon's namespace")
        } else {
            format!("{name} is not a veth")
        }
    };
    inside.iter().filter(elsewhere).map(why).collect()
}

/// An interface.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    loopback: bool,
    kind: Option<InfoKind>,
    /// Index of the other end of a veth, or of what lies below.
    other_end: Option<u32>,
    /// The namespace of that, if another: its number as this namespace counts.
    in_namespace: Option<i32>,
}

impl Link {
    fn is_veth(&self) -> bool {
        self.kind == Some(InfoKind::Veth)
    }

    fn of(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            kind: None,
            other_end: None,
            in_namespace: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Link(index) => link.other_end = Some(index),
                LinkAttribute::LinkNetNsId(number) => link.in_namespace = Some(number),
                LinkAttribute::LinkInfo(info) => {
                    link.kind = info.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

async fn links(handle: &Handle) -> io::Result<Vec<Link>> {
    let messages = handle.link().get().execute();
    messages.map_ok(Link::of).try_collect().await.map_err(io::Error::other)
}

/// The number by which the namespace of `handle` knows another; `None`: it has no link to it.
async fn number_of(mut handle: Handle, netns: &NetNs) -> io::Result<Option<i32>> {
    let file: &File = &netns.file;
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(file.as_raw_fd() as u32));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(request).map_err(io::Error::other)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => {
                return Ok(message.attributes.into_iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) if number >= 0 => Some(number),
                    _ => None,
                }));
            }
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(None)
}

/// An IPv6 address of an interface that is more than link-local.
async fn global_v6(handle: &Handle, index: u32) -> io::Result<Option<Ipv6Addr>> {
    let mut messages = handle.address().get().set_link_index_filter(index).execute();
    let mut found = None;
    while let Some(message) = messages.try_next().await.map_err(io::Error::other)? {
        found = found.or(message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V6(v6)) if !v6.is_unicast_link_local() => Some(*v6),
            _ => None,
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: Option<InfoKind>, other: Option<(u32, i32)>) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            loopback: false,
            kind,
            other_end: other.map(|(end, _)| end),
            in_namespace: other.map(|(_, number)| number),
        }
    }

    /// T-65: a way that no layer stands on is said.
    #[test]
    fn what_leads_out_by_no_gate_is_a_gap() {
        let lo = Link { loopback: true, ..link(1, None, None) };
        let inside = [
            lo,
            link(2, Some(InfoKind::Veth), Some((12, 0))),
            link(3, Some(InfoKind::Veth), Some((12, 1))),
            link(4, None, None),
            link(5, Some(InfoKind::MacVlan), Some((7, 0))),
            link(6, Some(InfoKind::Tun), None),
        ];
        assert_eq!(
            gaps(&inside, &[(2, 12)]),
            [
                "the other end of if3 is not in the daemon's namespace",
                "if4 is not a veth",
                "if5 is not a veth"
            ]
        );
    }
}
