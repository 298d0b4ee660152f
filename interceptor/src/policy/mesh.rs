//! MeshConfig, as far as it governs egress (MESH-1 to MESH-9).

use std::sync::Arc;
use std::time::Duration;

use super::Outbound;
use super::fields::{Context, Fields, Findings, Located};
use super::providers::{self, Provider};
use super::service_entry::one_of;
use crate::account::{Encoding, Format, LogTarget};

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
}

/// Fields of MeshConfig that have no effect here (yet). Anything outside this list is a mistake.
const UNUSED: &[&str] = &[
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "defaultConfig",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultTrafficPolicy",
    "defaultVirtualServiceExportTo",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "h2UpgradePolicy",
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
    "pathNormalization",
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
        let outbound = outbound(&mut f, cx, out);
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
fn outbound(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Option<Outbound> {
    let policy = f.take_present("outboundTrafficPolicy")?;
    let mut inner = Fields::of(policy.value, policy.path, cx, out);
    let mode = inner.text("mode", cx, out);
    inner.finish(cx, out);
    let Some(mode) = mode else { return Some(Outbound::RegistryOnly) };
    if mode.value == "ALLOW_ANY_DYNAMIC_DNS" {
        let message = "ALLOW_ANY_DYNAMIC_DNS is not supported yet; use ALLOW_ANY or REGISTRY_ONLY";
        out.errors.push(cx.notice(mode.at, &mode.path, message));
        return None;
    }
    let modes = [("REGISTRY_ONLY", Outbound::RegistryOnly), ("ALLOW_ANY", Outbound::AllowAny)];
    one_of(Some(mode), &modes, cx, out)
}
