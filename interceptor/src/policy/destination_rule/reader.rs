//! Reading values that carry a verdict of their own: a wrong shape is an error of the document, a
//! value out of range rejects the resource.

use std::collections::HashSet;
use std::time::Duration;

use super::super::entry::is_dns_label;
use super::super::fields::{Context, Fields, Findings, Located, parse_duration};
use super::super::node::Node;

/// What a resource is read with; [`good`](Self::good) turns false with the first rejection.
pub(in crate::policy) struct Reader<'a> {
    pub(in crate::policy) cx: &'a Context,
    pub(in crate::policy) out: &'a mut Findings,
    pub(in crate::policy) good: bool,
}

/// What a duration may be, besides whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// 1 ms or more.
    Positive,
    /// The same, or zero.
    OrZero,
    /// 1 ms to 1 h.
    UpToHour,
}

impl<'a> Reader<'a> {
    pub(in crate::policy) fn new(cx: &'a Context, out: &'a mut Findings) -> Self {
        Self { cx, out, good: true }
    }

    /// Leaves the resource out, because of this field.
    pub(in crate::policy) fn reject<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        self.good = false;
        self.out.rejected.push(self.cx.notice(at.at, &at.path, message));
    }

    pub(in crate::policy) fn warn<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        self.out.warnings.push(self.cx.notice(at.at, &at.path, message));
    }

    pub(in crate::policy) fn fields<'n>(&mut self, node: &Located<&'n Node>) -> Fields<'n> {
        Fields::of(node.value, node.path.clone(), self.cx, self.out)
    }

    pub(super) fn text(&mut self, f: &mut Fields<'_>, field: &str) -> Option<Located<String>> {
        f.text(field, self.cx, self.out)
    }

    /// A text that is not empty.
    pub(super) fn filled(&mut self, f: &mut Fields<'_>, field: &str) -> Option<Located<String>> {
        self.text(f, field).filter(|text| !text.value.is_empty())
    }

    pub(super) fn flag(&mut self, f: &mut Fields<'_>, field: &str) -> bool {
        f.boolean(field, self.cx, self.out).is_some_and(|flag| flag.value)
    }

    /// A number that must not be negative.
    pub(in crate::policy) fn number(
        &mut self,
        f: &mut Fields<'_>,
        field: &str,
    ) -> Option<Located<u32>> {
        let found = f.int(field, self.cx, self.out)?;
        match u32::try_from(found.value) {
            Ok(value) => Some(Located { value, at: found.at, path: found.path }),
            Err(_) => {
                self.reject(&found, format!("{} is not between 0 and {}", found.value, u32::MAX));
                None
            }
        }
    }

    /// A limit; 0 sets none (DRV-5).
    pub(super) fn limit(&mut self, f: &mut Fields<'_>, field: &str) -> Option<u32> {
        let found = self.number(f, field)?;
        if i32::try_from(found.value).is_err() {
            self.reject(&found, format!("{} is more than {} (DRV-5)", found.value, i32::MAX));
        }
        Some(found.value).filter(|limit| *limit > 0)
    }

    /// 0 to 100 (DRV-7).
    pub(super) fn percent(&mut self, f: &mut Fields<'_>, field: &str) -> Option<u32> {
        let found = f.int(field, self.cx, self.out)?;
        let percent = u32::try_from(found.value).ok().filter(|percent| *percent <= 100);
        if percent.is_none() {
            self.reject(&found, format!("{} is not a percentage (DRV-7)", found.value));
        }
        percent
    }

    /// A port number, 1 to 65535.
    pub(in crate::policy) fn port(&mut self, found: &Located<i64>) -> Option<u16> {
        let port = u16::try_from(found.value).ok().filter(|port| *port > 0);
        if port.is_none() {
            self.reject(found, format!("port {} is not between 1 and 65535", found.value));
        }
        port
    }

    /// A duration of whole milliseconds (DRV-5).
    pub(super) fn duration(
        &mut self,
        f: &mut Fields<'_>,
        field: &str,
        range: Range,
    ) -> Option<Duration> {
        let found = f.text(field, self.cx, self.out)?;
        self.check_duration(&found, range)
    }

    /// The same of a text in hand.
    pub(super) fn check_duration(
        &mut self,
        found: &Located<String>,
        range: Range,
    ) -> Option<Duration> {
        if let Some(positive) = found.value.strip_prefix('-')
            && parse_duration(positive).is_some()
        {
            self.reject(found, "a duration must not be negative (DRV-5)");
            return None;
        }
        let Some(value) = parse_duration(&found.value) else {
            let message =
                format!("\"{}\" is not a duration; write it like 5s or 100ms", found.value);
            self.out.errors.push(self.cx.notice(found.at, &found.path, message));
            return None;
        };
        let message = if value.is_zero() && range == Range::OrZero {
            return Some(value);
        } else if value < Duration::from_millis(1) {
            "a duration must be at least 1ms (DRV-5)"
        } else if value.subsec_nanos() % 1_000_000 != 0 {
            "a duration must be whole milliseconds (DRV-5)"
        } else if range == Range::UpToHour && value > Duration::from_secs(3600) {
            "must be at most 1h (DRV-5)"
        } else {
            return Some(value);
        };
        self.reject(found, message);
        None
    }

    /// Labels that select: no empty key, no wildcard (SEV-10).
    pub(super) fn selector(&mut self, node: &Located<&Node>, inner: &str) -> Vec<(String, String)> {
        let mut f = self.fields(node);
        let labels = string_pairs(&mut f, inner, self);
        f.finish(self.cx, self.out);
        if labels.is_empty() {
            self.warn(node, "selects every workload without labels (SEV-10)");
        }
        if labels.iter().any(|(k, v)| k.is_empty() || k.contains('*') || v.contains('*')) {
            self.reject(node, "label with an empty key or a wildcard (SEV-10)");
        }
        labels
    }

    /// Namespaces of `exportTo` with `.` replaced by the own one, sorted (SEV-21, DRV-14).
    pub(super) fn export_to(
        &mut self,
        f: &mut Fields<'_>,
        namespace: &str,
        selected: bool,
    ) -> Vec<String> {
        let items = f.texts("exportTo", self.cx, self.out);
        let mut names = HashSet::new();
        for item in &items {
            let name = if item.value == "." { namespace } else { &item.value };
            if !names.insert(name) {
                self.reject(item, format!("\"{}\" is given twice (SEV-21)", item.value));
            }
            if name == "*" {
                if items.len() > 1 {
                    self.reject(item, "\"*\" stands alone or not at all (SEV-21)");
                }
            } else if name == "~" {
                self.reject(item, "\"~\" would hide the rule from everybody (DRV-14)");
            } else if !is_dns_label(name) {
                self.reject(item, format!("\"{name}\" is not a namespace (SEV-21)"));
            }
            if selected && name != namespace {
                let message = "a rule with a workloadSelector stays in its own namespace (DRV-14)";
                self.reject(item, message);
            }
        }
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }
}

/// A mapping of texts to texts, sorted.
pub(in crate::policy) fn string_pairs(
    f: &mut Fields<'_>,
    field: &str,
    r: &mut Reader<'_>,
) -> Vec<(String, String)> {
    let entries = f.entries(field, r.cx, r.out);
    let mut pairs = super::super::service_entry::string_map(entries, r.cx, r.out);
    pairs.sort();
    pairs
}
