//! What goes direct: destinations whose verdict the kernel knows, and the names that it asks for
//! there.

use crate::Endpoint;

/// Key of the `ENDPOINTS` and `DATAGRAMS` tables: policy, port and family match exactly, the address by
/// prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    policy: [u8; 2],
    port: [u8; 2],
    family: [u8; 4],
    addr: [u8; 16],
}

const _: () = assert!(size_of::<EndpointKey>() == 24);

impl EndpointKey {
    /// Bits in front of the address.
    pub const FIXED_BITS: u32 = 64;

    /// Stands for every port that has no row for the address.
    pub const ANY_PORT: u16 = 0;

    /// Together with a policy's number: rows that say what is not captured (`Direct`) and what is
    /// (`Proxy`), by a pod's annotations (CAP-2). No policy's own number has this bit.
    pub const CAPTURE: u16 = 1 << 15;

    /// The key and the length of its whole prefix, in bits, for one destination, at its own port or
    /// at [`Self::ANY_PORT`].
    #[inline(always)]
    pub fn exact(policy: u16, dst: &Endpoint, port: u16) -> (Self, u32) {
        match dst.as_v4() {
            Some(a) => (Self::v4(policy, a, port), Self::FIXED_BITS + 32),
            None => (Self::v6(policy, dst.addr(), port), Self::FIXED_BITS + 128),
        }
    }

    /// Whose row it is.
    pub const fn policy(&self) -> u16 {
        u16::from_ne_bytes(self.policy)
    }

    /// A v4 address (network order) and port (host order).
    #[inline(always)]
    pub const fn v4(policy: u16, a: [u8; 4], port: u16) -> Self {
        let addr = [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { policy: policy.to_ne_bytes(), port: port.to_be_bytes(), family: [4, 0, 0, 0], addr }
    }

    /// A v6 address (network order) and port (host order).
    #[inline(always)]
    pub const fn v6(policy: u16, addr: [u8; 16], port: u16) -> Self {
        Self { policy: policy.to_ne_bytes(), port: port.to_be_bytes(), family: [6, 0, 0, 0], addr }
    }
}

/// What the kernel does with a destination. In [`EndpointRule::verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndpointVerdict {
    /// To the proxy, as what is not in the table: a hole in a larger network.
    Proxy = 0,
    /// Direct: every byte of every client is allowed there.
    Direct = 1,
    /// Direct, if the first bytes are a ClientHello with a name of the set.
    Named = 2,
    /// Refused: no byte of any client is allowed there.
    Refused = 3,
    /// Direct as `Direct`; a name in the first bytes is kept for the log.
    Noticed = 4,
}

/// Value of the `ENDPOINTS` table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRule {
    /// An [`EndpointVerdict`]; any other number is `Proxy`.
    pub verdict: u8,
    /// Always zero.
    pub pad: u8,
    /// The set of names, where `Named`; where `Proxy`, that of connections which were let go before.
    pub names: u16,
    /// What user space calls flows of it, where `Direct` or `Noticed`.
    pub label: u32,
}

const _: () = assert!(size_of::<EndpointRule>() == 8);

/// Key of the `NAMES` table: the set, then the name reversed and in lower case, ended by 0 for that
/// name alone and by '.' for every name below it. Matched by prefix: the longest wins.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey {
    bytes: [u8; 256],
}

const _: () = assert!(size_of::<NameKey>() == 256);

impl NameKey {
    /// Bytes in front of the name.
    pub const FIXED: usize = 2;

    /// The key of a set's row, and how many bits of it count. `name` is a host name in lower case
    /// (at most 253 bytes), `below` whether it stands for the names below it.
    pub fn row(set: u16, name: &str, below: bool) -> Option<(Self, u32)> {
        let end = Self::FIXED + name.len();
        let mut bytes = [0; 256];
        bytes[..Self::FIXED].copy_from_slice(&set.to_ne_bytes());
        for (slot, byte) in bytes.get_mut(Self::FIXED..end)?.iter_mut().zip(name.bytes().rev()) {
            *slot = byte;
        }
        *bytes.get_mut(end)? = if below { b'.' } else { 0 };
        Some((Self { bytes }, 8 * (end as u32 + 1)))
    }

    /// The set that the row belongs to.
    pub fn set(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]])
    }
}

/// Value of the `NAMES` table: what user space calls flows under the name.
pub type Label = u32;

/// The name is known and may not go direct here: a more specific entry than the wildcard around it.
pub const LABEL_REFUSED: Label = 0;

/// What a flow is called that nobody judged: audit lets pass what cannot be turned to the proxy.
pub const LABEL_UNJUDGED: Label = LABEL_KEEPS_NAME - 1;

/// In a label: several names have it, so the name that was shown is kept.
pub const LABEL_KEEPS_NAME: Label = 1 << 31;

/// A name as a client showed it: reversed, in lower case, ended by 0.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownName {
    /// What is not used is zero.
    pub bytes: [u8; 256],
}

const _: () = assert!(size_of::<ShownName>() == 256);

impl Default for ShownName {
    fn default() -> Self {
        Self { bytes: [0; 256] }
    }
}

/// A direct connection that has not shown an allowed name yet. Value of the `PENDING` table, by the
/// socket's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// As [`Event::netns`](crate::Event::netns).
    pub netns: u64,
    /// `bpf_ktime_get_ns` at connect.
    pub started_ns: u64,
    /// The workload's end.
    pub src: Endpoint,
    /// The address dialled.
    pub dst: Endpoint,
    /// 1 once it was refused: it is there to be destroyed.
    pub refused: u32,
    /// [`HELD`] and [`CUT`], once a part of a hello was held.
    pub held: u32,
}

const _: () = assert!(size_of::<Pending>() == 64);

/// In [`Pending::held`]: a part of a hello is held until the rest joins it.
pub const HELD: u32 = 1;

/// In [`Pending::held`]: the same, and TCP made a packet of less than what was written. The rest can
/// never join it.
pub const CUT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_prefix(row: (NameKey, u32), of: (NameKey, u32)) -> bool {
        let bytes = row.1 as usize / 8;
        row.1 <= of.1 && row.0.bytes[..bytes] == of.0.bytes[..bytes]
    }

    /// T-22: a wildcard is a prefix of the names below it, and of nothing else.
    #[test]
    fn wildcards_are_prefixes_of_whole_labels() {
        let exact = |name| NameKey::row(7, name, false).expect("fits");
        let below = NameKey::row(7, "allowed.test", true).expect("fits");
        for (name, matches) in [
            ("a.allowed.test", true),
            ("b.a.allowed.test", true),
            ("allowed.test", false),
            ("evilallowed.test", false),
            ("allowed.test.evil", false),
        ] {
            assert_eq!(is_prefix(below, exact(name)), matches, "{name}");
        }
        assert!(!is_prefix(
            NameKey::row(8, "allowed.test", true).expect("fits"),
            exact("a.allowed.test")
        ));
        assert!(!is_prefix(exact("allowed.test"), exact("a.allowed.test")));
    }

    #[test]
    fn the_longest_name_fits_and_a_longer_one_has_no_row() {
        assert_eq!(NameKey::row(0, &"a".repeat(253), true).map(|(_, bits)| bits), Some(256 * 8));
        assert_eq!(NameKey::row(0, &"a".repeat(254), false), None);
        assert_eq!(NameKey::row(0x1234, "a", false).map(|(key, _)| key.set()), Some(0x1234));
    }
}
