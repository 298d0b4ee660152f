//! The interface layer: covered interfaces, and packets for which no socket vouches.

use crate::{Endpoint, PASSAGE_CLOSING_NS, PASSAGE_IDLE_NS, PASSAGE_NS};

/// A covered interface: the daemon's end of a veth whose other end is in a covered namespace. Value
/// of the `INTERFACES` table, by interface index.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interface {
    /// Cookie of the namespace at the other end.
    pub netns: u64,
    /// An address of this end besides link-local ones: neighbours are told apart by it. Zero: none.
    pub gateway_v6: [u8; 16],
    /// Since when `told` counts, `bpf_ktime_get_ns`. The kernel programs'.
    pub told_since_ns: u64,
    /// How many dropped packets were reported since then. The kernel programs'.
    pub told: u64,
}

const _: () = assert!(size_of::<Interface>() == 40);

/// Key of the `PASSAGES` table: both ends of a flow, as the packets have them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassageKey {
    /// Namespace cookie.
    pub netns: u64,
    /// The workload's end; of an echo the port is its identifier.
    pub inside: Endpoint,
    /// The other end.
    pub outside: Endpoint,
    /// IP protocol number.
    pub protocol: u32,
    /// Always zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<PassageKey>() == 56);

/// Value of the `PASSAGES` table: packets of this flow pass without a socket that vouches for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// `bpf_ktime_get_ns` of what last kept it open.
    pub seen_ns: u64,
    /// [`Passage::INBOUND`] or [`Passage::CLOSING`].
    pub kind: u32,
    /// 1 once an inbound TCP connection was answered beyond its SYN.
    pub established: u32,
}

const _: () = assert!(size_of::<Passage>() == 16);

impl Passage {
    /// The other end began: what answers it passes.
    pub const INBOUND: u32 = 1;
    /// A connection closed: what its kernel still has to say passes, and no payload.
    pub const CLOSING: u32 = 2;

    /// Whether it still stands at this time, monotonic nanoseconds.
    #[inline(always)]
    pub fn stands(&self, now_ns: u64) -> bool {
        let window = if self.kind == Self::CLOSING {
            PASSAGE_CLOSING_NS
        } else if self.established != 0 {
            PASSAGE_IDLE_NS
        } else {
            PASSAGE_NS
        };
        now_ns.saturating_sub(self.seen_ns) < window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_established_passage_stands_longer_and_a_closing_one_shorter() {
        let passage = |established| Passage { seen_ns: 5, kind: Passage::INBOUND, established };
        assert!(passage(0).stands(4), "another processor's clock may lag");
        assert!(passage(0).stands(PASSAGE_NS));
        assert!(!passage(0).stands(PASSAGE_NS + 5));
        assert!(passage(1).stands(PASSAGE_NS + 5));
        assert!(!passage(1).stands(PASSAGE_IDLE_NS + 5));
        let closing = Passage { kind: Passage::CLOSING, ..passage(1) };
        assert!(closing.stands(PASSAGE_CLOSING_NS) && !closing.stands(PASSAGE_CLOSING_NS + 5));
    }
}
