//! An address and a port.

/// An IP address (v4-mapped for IPv4) and a port, both big-endian. Aligned so that the BPF compiler
/// moves words and not single bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Endpoint {
    addr: [u8; 16],
    port: [u8; 2],
    pad: [u8; 2],
}

const _: () = assert!(size_of::<Endpoint>() == 20);

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Endpoint {
    /// From an IPv6 (or v4-mapped) address in network order and a port in host order.
    #[inline(always)]
    pub const fn new(addr: [u8; 16], port: u16) -> Self {
        Self { addr, port: port.to_be_bytes(), pad: [0; 2] }
    }

    /// From an IPv4 address in network order and a port in host order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4], port: u16) -> Self {
        let p = V4_PREFIX;
        let addr = [
            p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], a[0], a[1],
            a[2], a[3],
        ];
        Self::new(addr, port)
    }

    /// The address as 16 bytes in network order.
    #[inline(always)]
    pub const fn addr(&self) -> [u8; 16] {
        self.addr
    }

    /// The port in host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// The IPv4 address, if it is one (v4-mapped).
    #[inline(always)]
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        let a = &self.addr;
        let mapped = u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]) == 0
            && u32::from_ne_bytes([a[8], a[9], a[10], a[11]])
                == u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        if mapped { Some([a[12], a[13], a[14], a[15]]) } else { None }
    }

    /// Whether traffic to the address never leaves the namespace: 127/8, `::1`, and the
    /// unspecified addresses, which Linux takes for loopback (CAP-2).
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        match self.as_v4() {
            Some(v4) => v4[0] == 127 || u32::from_ne_bytes(v4) == 0,
            None => {
                let a = &self.addr;
                u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]) == 0
                    && u64::from_be_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]])
                        <= 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_mapped_and_read_back() {
        let e = Endpoint::v4([192, 0, 2, 7], 443);
        assert_eq!(e.addr(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 7]);
        assert_eq!((e.as_v4(), e.port()), (Some([192, 0, 2, 7]), 443));
    }

    #[test]
    fn loopback_of_both_families() {
        let v6 = |last: u8| {
            let mut a = [0; 16];
            a[15] = last;
            Endpoint::new(a, 1)
        };
        for (endpoint, loopback) in [
            (Endpoint::v4([127, 0, 0, 1], 1), true),
            (Endpoint::v4([127, 9, 8, 7], 1), true),
            (Endpoint::v4([0, 0, 0, 0], 1), true),
            (Endpoint::v4([0, 0, 0, 1], 1), false),
            (Endpoint::v4([126, 255, 255, 255], 1), false),
            (v6(1), true),
            (v6(0), true),
            (v6(2), false),
        ] {
            assert_eq!(endpoint.is_loopback(), loopback, "{endpoint:?}");
        }
    }
}
