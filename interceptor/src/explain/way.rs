//! Which way a connection takes: through the proxy, and why so, or not.

use std::net::IpAddr;
use std::time::Instant;

use serde::Serialize;

use super::{Dialled, Question};
use crate::decide::host::HostName;
use crate::decide::tier::WhyProxy;
use crate::policy::Snapshot;
use crate::tiers::{AddressBook, Row, Survey, compile::compile};

/// The way that a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Way {
    /// `bypass`, `direct`, `name`, `refused` (at connect) or `proxy`.
    pub tier: &'static str,
    /// For `proxy`: the label of the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// What that means.
    #[serde(skip)]
    pub text: &'static str,
}

impl Way {
    pub(super) fn bypass() -> Self {
        Self { tier: "bypass", why: None, text: "direct, judged by nobody" }
    }

    fn proxy(why: WhyProxy) -> Self {
        Self { tier: "proxy", why: Some(why.label()), text: why.explain() }
    }

    /// The way to what is `dialled`, by the tables that the kernel would have: `known` are the
    /// addresses of names.
    pub(super) fn of<'a>(
        snapshot: &Snapshot,
        namespace: &str,
        question: &Question,
        dialled: &Dialled,
        known: impl Iterator<Item = (&'a HostName, &'a [IpAddr])>,
    ) -> Self {
        if !snapshot.fast_path {
            return Self::proxy(WhyProxy::Off);
        }
        let mut book = AddressBook::default();
        let now = Instant::now();
        book.update(known, now);
        // A client dials what it asked for.
        let assumed = [dialled.addr.ip()];
        let asked = question.name().filter(|_| dialled.assumed);
        book.update(asked.map(|name| (name, &assumed[..])), now);
        let compiled = compile(snapshot, namespace, &Survey::of(&snapshot.policy), &book, []);
        match compiled.find(dialled.addr) {
            Ok(Row::Direct(_) | Row::Noticed(_)) => {
                Self { tier: "direct", why: None, text: "direct: address and port decide" }
            }
            Ok(Row::Named(_)) => Self {
                tier: "name",
                why: None,
                text: "direct, held in the kernel until it has read an allowed name",
            },
            Ok(Row::Refused(_)) => {
                Self { tier: "refused", why: None, text: "refused at connect: EPERM" }
            }
            Ok(Row::Proxy(why)) => Self::proxy(*why),
            Ok(Row::Retiring(_)) => Self::proxy(WhyProxy::Unresolved),
            Err(why) => Self::proxy(why),
        }
    }
}
