//! MeshConfig, as far as it governs egress (MESH-1 to MESH-9).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Outbound;
use super::destination_rule::{self, Blocks};
use super::fields::{Context, Fields, Findings, Located, text};
use super::node::{Node, Value};
use super::providers::{self, Provider};
use super::reader::Reader;
use super::service_entry::one_of;
use super::virtual_service::actions;
use crate::account::{Encoding, Format, LogTarget};
use crate::decide::route::Retries;
use crate::decide::traffic::{Origination, Trust, Verify};
use crate::decide::uri::Normalization;

/// A mesh configuration as written; `None` where a field is absent.
#[derive(Debug, Clone, Default)]
pub(super) struct MeshConfig {
    pub(super) context: Option<Context>,
    pub(super) outbound: Option<Outbound>,
    /// MESH-2; `Some(None)` where it is given and empty.
    pub(super) log_target: Option<Option<LogTarget>>,
    /// MESH-3 and MESH-4 together.
    pub(super) log_format: Arc<Format>,
    /// MESH-14.
    pub(super) providers: Vec<Provider>,
    /// MESH-15.
    pub(super) default_logging: Vec<Located<String>>,
    pub(super) detection_timeout: Option<Located<Duration>>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) dns_refresh: Option<Duration>,
    pub(super) root_namespace: Option<String>,
    pub(super) default_export: Option<Vec<Located<String>>>,
    /// `defaultVirtualServiceExportTo`.
    pub(super) virtual_service_export: Vec<String>,
    /// `defaultDestinationRuleExportTo`.
    pub(super) destination_rule_export: Vec<String>,
    /// MESH-16.
    pub(super) retries: Option<Retries>,
    /// `h2UpgradePolicy: UPGRADE` (MESH-12).
    pub(super) h2_upgrade: bool,
    /// MESH-18.
    pub(super) default_policy: Blocks,
    /// `pathNormalization` (VS-11).
    pub(super) normalization: Normalization,
    /// `outboundTrafficPolicy.tls` (MESH-31).
    pub(super) dynamic_tls: Option<Arc<Origination>>,
    /// `defaultConfig.proxyMetadata` switches DNS capture on (RES-18).
    pub(super) dns_capture: bool,
}

/// Fields of MeshConfig that have no effect here (yet). Anything outside this list is a mistake.
const UNUSED: &[&str] = &[
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "localityLbSetting",
    "meshMTLS",
    "mixerCheckServer",
    "mixerReportServer",
    "networks",
    "outboundClusterStatName",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "sdsUdsPath",
    "serviceEntryVisibility",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "thriftConfig",
    "tlsDefaults",
    "trustDomain",
    "trustDomainAliases",
    "verifyCertificateAtClient",
];

impl MeshConfig {
    pub(super) fn read(fields: Fields<'_>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = fields;
        let (outbound, dynamic_tls) = outbound(&mut f, cx, out);
        let encodings = [("TEXT", Encoding::Text), ("JSON", Encoding::Json)];
        let encoding = one_of(f.text("accessLogEncoding", cx, out), &encodings, cx, out);
        let log_target =
            f.text("accessLogFile", cx, out).map(|file| providers::target(&file.value));
        let format = f.text("accessLogFormat", cx, out);
        let log_format = providers::mesh_format(format, encoding.unwrap_or_default(), cx, out);
        let detection_timeout = f.duration("protocolDetectionTimeout", cx, out);
        if let Some(timeout) = &detection_timeout
            && timeout.value.subsec_nanos() % 1_000_000 != 0
        {
            let message = "must be a whole number of milliseconds (MESH-5)";
            out.errors.push(cx.notice(timeout.at, &timeout.path, message));
        }
        let connect_timeout = f.duration("connectTimeout", cx, out);
        if let Some(timeout) = &connect_timeout
            && !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&timeout.value)
        {
            let message = "must lie between 1ms and 1h (MESH-6)";
            out.errors.push(cx.notice(timeout.at, &timeout.path, message));
        }
        let default_export =
            f.has("defaultServiceExportTo").then(|| f.texts("defaultServiceExportTo", cx, out));
        let config = Self {
            context: Some(cx.clone()),
            outbound,
            log_target,
            log_format,
            providers: providers::read(&mut f, cx, out),
            default_logging: providers::read_defaults(&mut f, cx, out),
            detection_timeout,
            connect_timeout: connect_timeout.map(|t| t.value),
            dns_refresh: f.duration("dnsRefreshRate", cx, out).map(|t| t.value),
            root_namespace: f.text("rootNamespace", cx, out).map(|n| n.value),
            default_export,
            virtual_service_export: values(&mut f, "defaultVirtualServiceExportTo", cx, out),
            destination_rule_export: values(&mut f, "defaultDestinationRuleExportTo", cx, out),
            retries: retries(&mut f, cx, out),
            h2_upgrade: {
                let names = [("DO_NOT_UPGRADE", false), ("UPGRADE", true)];
                let found = one_of(f.text("h2UpgradePolicy", cx, out), &names, cx, out);
                found.unwrap_or_default()
            },
            default_policy: default_policy(&mut f, cx, out),
            normalization: normalization(&mut f, cx, out),
            dynamic_tls,
            dns_capture: dns_capture(&mut f, cx, out),
        };
        for (key, _) in f.rest() {
            let path = f.path_of(&key.name);
            if UNUSED.contains(&key.name.as_str()) {
                out.warnings.push(cx.notice(key.at, &path, "not used by interceptor"));
            } else {
                out.errors.push(cx.notice(key.at, &path, "unknown field"));
            }
        }
        config
    }
}

/// MESH-1: absent is ALLOW_ANY, present but empty is REGISTRY_ONLY.
fn outbound(
    f: &mut Fields<'_>,
    cx: &Context,
    out: &mut Findings,
) -> (Option<Outbound>, Option<Arc<Origination>>) {
    let Some(policy) = f.take_present("outboundTrafficPolicy") else { return (None, None) };
    let mut inner = Fields::of(policy.value, policy.path, cx, out);
    let mode = mode(&mut inner, cx, out);
    let tls = inner.take("tls").map(|node| Arc::new(dynamic_tls(&node, cx, out)));
    inner.finish(cx, out);
    (Some(mode.unwrap_or(Outbound::RegistryOnly)), tls.filter(|_| mode.is_some()))
}

/// By name, or by the enumeration's number, as protobuf's JSON takes either (MESH-1).
fn mode(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Option<Outbound> {
    let modes = [
        ("REGISTRY_ONLY", Outbound::RegistryOnly),
        ("ALLOW_ANY", Outbound::AllowAny),
        ("ALLOW_ANY_DYNAMIC_DNS", Outbound::AllowAnyDynamicDns),
    ];
    let found = f.take("mode")?;
    let numbers = [(0, modes[0].1), (1, modes[1].1), (3, modes[2].1)];
    let number = match found.value.value {
        Value::Int(given) => numbers.iter().find(|(number, _)| *number == given),
        _ => None,
    };
    match number {
        Some((_, mode)) => Some(*mode),
        None => one_of(text(found, cx, out), &modes, cx, out),
    }
}

/// RES-18, RES-19. Nothing else of the proxy's own configuration has an effect here.
fn dns_capture(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> bool {
    let Some(node) = f.take("defaultConfig") else { return false };
    let mut config = Fields::of(node.value, node.path, cx, out);
    let metadata = config.entries("proxyMetadata", cx, out).unwrap_or_default();
    let unused = |path: &str, at| cx.notice(at, path, "not used by interceptor");
    for (key, _) in config.rest() {
        out.warnings.push(unused(&config.path_of(&key.name), key.at));
    }
    let mut capture = false;
    for (name, node) in metadata {
        let (path, at) = (node.path.clone(), node.at);
        let Some(value) = text(node, cx, out) else { continue };
        match name.as_str() {
            "ISTIO_META_DNS_CAPTURE" if value.value == "true" => {
                capture = true;
                let message = "entries without addresses are reached by automatic ones only \
                               (RES-19), and interceptor does not answer DNS itself: the workload \
                               has to learn those elsewhere, or give the entries addresses";
                out.warnings.push(cx.notice(at, &path, message));
            }
            // Automatic addresses come with capture, as in every current version.
            "ISTIO_META_DNS_CAPTURE" | "ISTIO_META_DNS_AUTO_ALLOCATE" => {}
            _ => out.warnings.push(unused(&path, at)),
        }
    }
    capture
}

/// TLS towards whatever a request names: the system's roots or a file of them (MESH-31).
fn dynamic_tls(node: &Located<&Node>, cx: &Context, out: &mut Findings) -> Origination {
    let mut f = Fields::of(node.value, node.path.clone(), cx, out);
    one_of(f.text("mode", cx, out), &[("SIMPLE", ())], cx, out);
    let sni = f.text("sni", cx, out).map(|sni| sni.value);
    let file = f.text("caCertificates", cx, out).map(|file| PathBuf::from(file.value));
    let subject_alt_names =
        f.texts("subjectAltNames", cx, out).into_iter().map(|name| name.value).collect();
    let unchecked = f.boolean("insecureSkipVerify", cx, out).is_some_and(|flag| flag.value);
    f.finish(cx, out);
    Origination {
        sni,
        trust: file.map_or(Trust::System, Trust::File),
        subject_alt_names,
        verify: if unchecked { Verify::Nothing } else { Verify::ChainAndName },
        ..Origination::default()
    }
}

fn values(f: &mut Fields<'_>, field: &str, cx: &Context, out: &mut Findings) -> Vec<String> {
    f.texts(field, cx, out).into_iter().map(|item| item.value).collect()
}

/// MESH-16. What does not hold makes the mesh configuration unusable.
fn retries(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Option<Retries> {
    let node = f.take("defaultHttpRetryPolicy")?;
    let rejected = out.rejected.len();
    let retries = actions::retries(&mut Reader { cx, out: &mut *out, namespace: "" }, &node);
    let bad = out.rejected.split_off(rejected);
    out.errors.extend(bad);
    Some(retries)
}

/// MESH-18. What does not hold makes the mesh configuration unusable.
fn default_policy(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Blocks {
    let Some(node) = f.take("defaultTrafficPolicy") else { return Blocks::default() };
    let rejected = out.rejected.len();
    let blocks = Blocks::read_default(&node, &mut destination_rule::Reader::new(cx, out));
    let bad = out.rejected.split_off(rejected);
    out.errors.extend(bad);
    blocks
}

/// VS-11.
fn normalization(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Normalization {
    let Some(node) = f.take("pathNormalization") else { return Normalization::default() };
    let mut inner = Fields::of(node.value, node.path, cx, out);
    let names = [
        ("DEFAULT", Normalization::Base),
        ("NONE", Normalization::Nothing),
        ("BASE", Normalization::Base),
        ("MERGE_SLASHES", Normalization::MergeSlashes),
        ("DECODE_AND_MERGE_SLASHES", Normalization::DecodeAndMergeSlashes),
    ];
    let found = one_of(inner.text("normalization", cx, out), &names, cx, out);
    inner.finish(cx, out);
    found.unwrap_or_default()
}
