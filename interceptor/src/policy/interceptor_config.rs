//! InterceptorConfig: what Istio's resources cannot say, and for whom one holds: the whole mesh, a
//! namespace, or the workloads that it selects.

use std::sync::Arc;

use ipnet::IpNet;

use super::egress_proxy::EgressProxies;
use super::fields::{Context, Fields, Findings};
use super::limits::{Limits, LimitsGiven};
use super::load::Caller;
use super::metadata::Meta;
use super::node::At;
use super::notice::Notice;
use super::service_entry::{one_of, string_map};
use super::{Enforcement, OnLogLoss, OnLoss, OnRemoval};

/// An InterceptorConfig as written.
#[derive(Debug, Clone)]
pub(super) struct InterceptorConfig {
    meta: Meta,
    context: Context,
    at: At,
    /// `None`: every workload of its namespace; of the root namespace's, of the mesh.
    selector: Option<Vec<(String, String)>>,
    says: Says,
}

/// What one says, or several together.
#[derive(Debug, Clone, Default)]
pub(super) struct Says {
    pub(super) enforcement: Option<Enforcement>,
    pub(super) on_removal: Option<OnRemoval>,
    pub(super) on_loss: Option<OnLoss>,
    pub(super) on_log_loss: Option<OnLogLoss>,
    pub(super) fast_path: Option<bool>,
    pub(super) limits: LimitsGiven,
    pub(super) egress_proxies: Option<Arc<EgressProxies>>,
    /// Networks to which TCP goes as without us.
    pub(super) bypass: Option<Vec<IpNet>>,
}

/// How many workloads the configurations are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The namespace whose resources hold for all.
    pub(super) root: &'a str,
    /// There is one workload only, so that nobody else has a say in what is everybody's.
    pub(super) is_lone: bool,
}

/// The namespace of what names none.
const UNNAMED: &str = "default";

/// How specific one is for a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Mesh,
    Namespace,
    Selected,
}

impl InterceptorConfig {
    /// Reads `spec`.
    pub(super) fn read(
        meta: Meta,
        at: At,
        mut spec: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Self {
        let mut says = Says::default();
        let names = [("strict", Enforcement::Strict), ("istio", Enforcement::Istio)];
        let found = spec.text("enforcement", cx, out);
        says.enforcement = one_of(found, &names, cx, out);
        let names = [("keep", OnRemoval::Keep), ("cut", OnRemoval::Cut)];
        let found = spec.text("onPolicyRemoval", cx, out);
        says.on_removal = one_of(found, &names, cx, out);
        let names = [("closed", OnLoss::Closed), ("direct-tier", OnLoss::DirectTier)];
        let found = spec.text("onDaemonLoss", cx, out);
        says.on_loss = one_of(found, &names, cx, out);
        let names = [("continue", OnLogLoss::Continue), ("refuse", OnLogLoss::Refuse)];
        let found = spec.text("onLogLoss", cx, out);
        says.on_log_loss = one_of(found, &names, cx, out);
        says.fast_path = spec.boolean("fastPath", cx, out).map(|value| value.value);
        if let Some(limits) = spec.take("limits") {
            let fields = Fields::of(limits.value, limits.path, cx, out);
            says.limits = LimitsGiven::read(fields, cx, out);
        }
        if let Some(proxies) = spec.take("egressProxy") {
            let fields = Fields::of(proxies.value, proxies.path, cx, out);
            let namespace = Arc::clone(&meta.namespace);
            says.egress_proxies = Some(EgressProxies::read(fields, namespace, cx, out).into());
        }
        if spec.has("bypassCIDRs") {
            says.bypass = Some(networks(&mut spec, cx, out));
        }
        let selector = spec.take("selector").map(|found| {
            let mut inner = Fields::of(found.value, found.path.clone(), cx, out);
            let labels = string_map(inner.entries("matchLabels", cx, out), cx, out);
            inner.finish(cx, out);
            if labels.is_empty() {
                let message = "selects nobody; name labels in matchLabels, or leave selector out";
                out.errors.push(cx.notice(found.at, &found.path, message));
            }
            labels
        });
        let later = ["mode", "excludedPorts", "resolvers", "accessLog"];
        for (key, _) in spec.rest() {
            let path = format!("spec.{}", key.name);
            let known = later.contains(&key.name.as_str());
            let message = if known { "not supported yet" } else { "unknown field" };
            out.errors.push(cx.notice(key.at, &path, message));
        }
        Self { meta, context: cx.clone(), at, selector, says }
    }

    /// How it concerns a workload; `None`: not at all. Where there is one workload only, one that names no
    /// namespace is for it.
    fn level(&self, caller: &Caller, scope: Scope<'_>) -> Option<Level> {
        let is_own = *self.meta.namespace == *caller.namespace;
        let is_root = *self.meta.namespace == *scope.root
            || (scope.is_lone && !is_own && *self.meta.namespace == *UNNAMED);
        match &self.selector {
            Some(labels) => ((is_own || is_root) && caller.has(labels)).then_some(Level::Selected),
            None if is_root => Some(Level::Mesh),
            None => is_own.then_some(Level::Namespace),
        }
    }

    fn age(&self) -> (&str, &str) {
        (&self.meta.created, &self.meta.name)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.meta.namespace, self.meta.name)
    }

    /// The fields that it has and that are everybody's.
    fn fields_of_all(&self) -> Vec<&'static str> {
        let Says { enforcement, on_loss, on_log_loss, limits, .. } = &self.says;
        let has = [
            ("enforcement", enforcement.is_some()),
            ("onDaemonLoss", on_loss.is_some()),
            ("onLogLoss", on_log_loss.is_some()),
            ("limits.connections", limits.connections.is_some()),
            ("limits.undecided", limits.undecided.is_some()),
            ("limits.descriptorReserve", limits.descriptor_reserve.is_some()),
        ];
        has.into_iter().filter(|(_, has)| *has).map(|(field, _)| field).collect()
    }
}

/// What holds for a workload: field by field what is most specific, and of several at one level the
/// oldest.
pub(super) fn says(all: &[InterceptorConfig], caller: &Caller, scope: Scope<'_>) -> Says {
    let mut concerned: Vec<_> =
        all.iter().filter_map(|one| Some((one.level(caller, scope)?, one))).collect();
    concerned.sort_by(|(a, one), (b, other)| b.cmp(a).then(one.age().cmp(&other.age())));
    let mut found = Says::default();
    let mut last = None;
    for (level, one) in concerned {
        if last.replace(level) == Some(level) {
            continue;
        }
        let more = match level == Level::Mesh || scope.is_lone {
            true => one.says.clone(),
            false => one.says.of_one(),
        };
        found = found.or(more);
    }
    found
}

/// What those that have no effect, or not all of it, are to be told.
pub(super) fn overruled(all: &[InterceptorConfig], scope: Scope<'_>) -> Vec<Notice> {
    let mut notices = Vec::new();
    for one in all {
        let older = all.iter().filter(|other| {
            other.selector.is_none()
                && other.meta.namespace == one.meta.namespace
                && other.age() < one.age()
        });
        if one.selector.is_none()
            && let Some(older) = older.min_by(|a, b| a.age().cmp(&b.age()))
        {
            let message = format!(
                "not in force: the older {} holds for the namespace; put both into one, or give this \
                 one a selector",
                older.name()
            );
            notices.push(one.context.notice(one.at, "", message));
            continue;
        }
        let of_mesh = one.selector.is_none() && *one.meta.namespace == *scope.root;
        let fields = one.fields_of_all();
        if !of_mesh && !scope.is_lone && !fields.is_empty() {
            let message = format!(
                "not in force: {} of one without a selector in namespace {} only, since all \
                 workloads share that",
                fields.join(", "),
                scope.root
            );
            notices.push(one.context.notice(one.at, "spec", message));
        }
    }
    notices
}

/// For one workload: that none of several concerns it is most likely a mistake.
pub(super) fn idle(all: &[InterceptorConfig], caller: &Caller, scope: Scope<'_>) -> Option<Notice> {
    let first = all.first()?;
    if all.iter().any(|one| one.level(caller, scope).is_some()) {
        return None;
    }
    let message = format!(
        "not in force: it is for namespace {}, and the workload is of {}; {} is for all",
        first.meta.namespace, caller.namespace, scope.root
    );
    Some(first.context.notice(first.at, "metadata.namespace", message))
}

impl Says {
    /// Without what is everybody's.
    fn of_one(&self) -> Self {
        Self {
            enforcement: None,
            on_loss: None,
            on_log_loss: None,
            limits: self.limits.of_one(),
            ..self.clone()
        }
    }

    /// Itself, and what `other` says beyond it.
    fn or(self, other: Self) -> Self {
        Self {
            enforcement: self.enforcement.or(other.enforcement),
            on_removal: self.on_removal.or(other.on_removal),
            on_loss: self.on_loss.or(other.on_loss),
            on_log_loss: self.on_log_loss.or(other.on_log_loss),
            fast_path: self.fast_path.or(other.fast_path),
            limits: self.limits.or(other.limits),
            egress_proxies: self.egress_proxies.or(other.egress_proxies),
            bypass: self.bypass.or(other.bypass),
        }
    }

    /// The limits.
    pub(super) fn limits(&self) -> Limits {
        self.limits.with_defaults()
    }
}

/// `bypassCIDRs`.
fn networks(spec: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Vec<IpNet> {
    let mut all = Vec::new();
    for item in spec.texts("bypassCIDRs", cx, out) {
        let parsed = item.value.parse::<IpNet>();
        let message = match parsed {
            Ok(net) if net.trunc() == net => {
                all.push(net);
                continue;
            }
            Ok(net) => format!("{net} has bits beyond its prefix; write {}", net.trunc()),
            Err(_) => {
                format!("\"{}\" is not a network like 10.0.0.0/8 or 2001:db8::/32", item.value)
            }
        };
        out.errors.push(cx.notice(item.at, &item.path, message));
    }
    all
}

#[cfg(test)]
#[path = "tests/interceptor_config.rs"]
mod tests;
