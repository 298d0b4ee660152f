//! `aya::Pod` for what lies in maps, here because of the orphan rule.

use crate::{
    DatagramPeer, EndpointKey, EndpointRule, Event, Handover, HandoverKey, Hint, Interface,
    NameKey, NamedEvent, Namespace, Passage, PassageKey, Pending, Route, RouteKey, Settings,
    ShownName, SocketState,
};

macro_rules! pod {
    ($($type:ty),*) => {
        $(
            // SAFETY: repr(C), Copy, no implicit padding (sizes asserted beside each type), and
            // every bit pattern is a valid value: the fields are integers and byte arrays only.
            unsafe impl aya::Pod for $type {}
        )*
    };
}

pod!(
    DatagramPeer,
    EndpointKey,
    EndpointRule,
    Event,
    Handover,
    HandoverKey,
    Hint,
    Interface,
    NameKey,
    NamedEvent,
    Namespace,
    Passage,
    PassageKey,
    Pending,
    Route,
    RouteKey,
    Settings,
    ShownName,
    SocketState
);
