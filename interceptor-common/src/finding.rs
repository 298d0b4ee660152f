//! What a hook found. One list for kernel counters, events, metrics and status.

macro_rules! findings {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)*) => {
        /// What a hook found about one socket, connect or packet. Indexes the `COUNTERS` table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Finding {
            $($(#[$doc])* $name = $number,)*
        }

        impl Finding {
            /// Every finding, in numeric order.
            pub const ALL: &'static [Finding] = &[$(Finding::$name,)*];

            /// The label in metrics and status.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Finding::$name => $label,)*
                }
            }
        }
    };
}

findings! {
    /// A connection was turned to the proxy.
    Redirected = 0, "redirected";
    /// A connection went direct by an operator's CIDR.
    Bypassed = 1, "bypassed";
    /// A connection or datagram went to a configured resolver.
    Resolver = 2, "resolver";
    /// The destination is the workload's own loopback.
    Loopback = 3, "loopback";
    /// The caller is the daemon.
    Daemon = 4, "daemon";
    /// Refused: the network namespace is not covered.
    NamespaceUnknown = 5, "refused_namespace_unknown";
    /// ENETUNREACH: the namespace has no route there.
    NoRoute = 6, "no_route";
    /// Refused: no listener for the address family.
    NoListener = 7, "refused_no_listener";
    /// Refused: no memory for the socket's state.
    NoStorage = 8, "refused_no_storage";
    /// Refused: the socket is bound to a device and the binding could not be lifted.
    BoundDevice = 9, "refused_bound_device";
    /// Refused: a protocol other than TCP and UDP.
    Protocol = 10, "refused_protocol";
    /// Refused: Multipath TCP (clients fall back to TCP).
    Mptcp = 11, "refused_mptcp";
    /// A datagram went where an entry allows it.
    DatagramAllowed = 12, "datagram_allowed";
    /// A datagram answered a peer that wrote first.
    DatagramReply = 13, "datagram_reply";
    /// A datagram passed since the mode lets datagrams pass.
    DatagramUnrestricted = 14, "datagram_unrestricted";
    /// Refused: a datagram that nothing allows.
    DatagramRefused = 15, "refused_datagram";
    /// Dropped: a TCP packet out of the namespace whose socket neither a connect hook approved nor
    /// was accepted or kept, or with a routing header or IP options.
    Unapproved = 16, "dropped_unapproved";
    /// The table of hand-overs is full: the proxy refuses the connection.
    HandoverFull = 17, "handover_table_full";
    /// An accepted connection took its original destination over.
    HandoverTaken = 18, "handover_taken";
    /// An accepted connection without one: the proxy refuses it.
    HandoverMissing = 19, "handover_missing";
    /// A flow record was lost: the ring buffer was full.
    FlowLost = 20, "flow_record_lost";
    /// A refusal's record was lost: the ring buffer was full. The refusal itself was counted.
    RefusalLost = 21, "refusal_record_lost";
    /// SETTINGS could not be read: refused.
    NoSettings = 22, "refused_no_settings";
    /// A connection went direct by its address.
    Direct = 23, "direct";
    /// A connection went direct and must show a name first.
    NameAsked = 24, "name_asked";
    /// Refused: a destination that no entry allows.
    AddressRefused = 25, "refused_address";
    /// A direct connection showed an allowed name.
    NameAllowed = 26, "name_allowed";
    /// Held: the hello of a direct connection is not complete yet.
    HelloHeld = 27, "hello_held";
    /// Refused: the name is not one of those allowed at this address.
    NameRefused = 28, "refused_name";
    /// Refused: a hello without a name.
    NameMissing = 29, "refused_no_name";
    /// Refused: the first bytes are not TLS.
    NotTls = 30, "refused_not_tls";
    /// Refused: the hello is malformed, or more than the kernel reads.
    HelloUnclear = 31, "refused_hello_unclear";
    /// Refused: the destination left the table while its name was awaited.
    EndpointGone = 32, "refused_endpoint_gone";
    /// Dropped: data that its connection had not earned yet, or was refused.
    Unproven = 33, "dropped_unproven";
    /// Refused: too many direct connections have not shown a name.
    PendingFull = 34, "refused_pending_full";
    /// A workload heard from a resolver; the daemon may ask for the same name.
    HintGiven = 35, "hint_given";
    /// The same, and there was no room to say so: it stays unasked.
    HintLost = 36, "hint_lost";
    /// Refused: `onDaemonLoss: closed`, and no daemon has shown a sign of life for a while.
    DaemonLost = 37, "refused_daemon_lost";
    /// Dropped at the interface: neither IP nor ARP, tagged for a VLAN, or longer than it says.
    InterfaceFrame = 38, "dropped_interface_frame";
    /// Dropped at the interface: IP options, extension headers, or a fragment that nothing allows.
    InterfaceHeader = 39, "dropped_interface_header";
    /// Dropped at the interface: a TCP packet of no approved socket.
    InterfaceSocket = 40, "dropped_interface_socket";
    /// Dropped at the interface: an approved socket's packet that goes elsewhere than approved.
    InterfaceElsewhere = 41, "dropped_interface_elsewhere";
    /// Dropped at the interface: a datagram that nothing allows.
    InterfaceDatagram = 42, "dropped_interface_datagram";
    /// Dropped at the interface: ICMP that nothing allows.
    InterfaceIcmp = 43, "dropped_interface_icmp";
    /// Dropped at the interface: another protocol.
    InterfaceProtocol = 44, "dropped_interface_protocol";
    /// The table of passages is full, or the workload's part of it: what answers this inbound flow is
    /// dropped.
    PassagesFull = 45, "passage_table_full";
    /// A TCP packet that was dropped at the interface was answered with a reset.
    InterfaceReset = 46, "interface_reset";
    /// A packet that was dropped at the interface was counted and not reported: too many were, of late.
    InterfaceUntold = 47, "interface_drop_unreported";
    /// The namespace is exempt.
    Exempt = 48, "exempt";
    /// Passed, though it would be refused: the namespace is audited.
    Audited = 49, "audited";
    /// A connection went direct unjudged: the namespace is audited, and no daemon has shown a sign of life
    /// for a while, or it could not be turned to the proxy.
    AuditedUnjudged = 50, "audited_unjudged";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_positions() {
        for (index, finding) in Finding::ALL.iter().enumerate() {
            assert_eq!(*finding as usize, index, "{}", finding.label());
        }
    }
}
