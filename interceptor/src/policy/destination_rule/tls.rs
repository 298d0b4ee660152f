//! `tls` of a traffic policy, and the TLS that it makes the proxy originate (TLS-5 to TLS-9; DRV-8
//! to DRV-11).

use std::path::PathBuf;

use super::super::Enforcement;
use super::super::fields::Located;
use super::super::node::Node;
use super::super::service_entry::one_of;
use super::reader::Reader;
use super::rules::{PortKind, ServicePort};
use crate::decide::traffic::{Identity, Origination, Trust, Verify};

/// `tls` as written.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(super) mode: Mode,
    /// For messages about it.
    pub(super) at: Located<()>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    pub(super) credential: Option<String>,
    subject_alt_names: Vec<String>,
    sni: Option<String>,
    skip_verify: bool,
}

/// `tls.mode` (DR-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

impl Tls {
    pub(super) fn read(node: &Located<&Node>, r: &mut Reader<'_>) -> Self {
        let mut f = r.fields(node);
        let names = [
            ("DISABLE", Mode::Disable),
            ("SIMPLE", Mode::Simple),
            ("MUTUAL", Mode::Mutual),
            ("ISTIO_MUTUAL", Mode::IstioMutual),
        ];
        let mode = r.text(&mut f, "mode");
        let mode = one_of(mode, &names, r.cx, r.out).unwrap_or(Mode::Disable);
        let mut path = |field: &str| r.filled(&mut f, field).map(|n| PathBuf::from(n.value));
        let (certificate, key) = (path("clientCertificate"), path("privateKey"));
        let (ca, crl) = (path("caCertificates"), path("caCrl"));
        let credential = r.filled(&mut f, "credentialName").map(|n| n.value);
        let subject_alt_names = f.texts("subjectAltNames", r.cx, r.out);
        let tls = Self {
            mode,
            at: Located { value: (), at: node.at, path: node.path.clone() },
            certificate,
            key,
            ca,
            crl,
            credential,
            subject_alt_names: subject_alt_names.into_iter().map(|n| n.value).collect(),
            sni: r.filled(&mut f, "sni").map(|n| n.value),
            skip_verify: r.flag(&mut f, "insecureSkipVerify"),
        };
        f.finish(r.cx, r.out);
        tls.check(r);
        tls
    }

    fn check(&self, r: &mut Reader<'_>) {
        let at = &self.at;
        let files = [&self.certificate, &self.key, &self.ca, &self.crl];
        let any_file = files.into_iter().any(Option::is_some);
        let originates = matches!(self.mode, Mode::Simple | Mode::Mutual);
        if originates && self.credential.is_some() && any_file {
            r.reject(
                at,
                "credentialName excludes the files of certificate, key, CA and CRL (DRV-9)",
            );
        }
        if self.mode == Mode::Mutual && self.credential.is_none() {
            for (file, field) in
                [(&self.certificate, "clientCertificate"), (&self.key, "privateKey")]
            {
                if file.is_none() {
                    r.reject(at, format!("MUTUAL needs {field} or credentialName (DRV-8)"));
                }
            }
        }
        let trusts = self.ca.is_some()
            || !self.subject_alt_names.is_empty()
            || self.mode == Mode::Simple && self.credential.is_some();
        if originates && self.skip_verify && trusts {
            let message = "insecureSkipVerify checks nothing: remove it, or what it would be checked \
                           against (DRV-10)";
            r.reject(at, message);
        }
        if self.mode == Mode::IstioMutual && (any_file || self.credential.is_some()) {
            r.reject(at, "ISTIO_MUTUAL brings its own certificates (DRV-11)");
        }
    }

    /// Whether `credentialName` is for gateways only: a sidecar may read the secret where the rule
    /// selects workloads, or if it is a ConfigMap (TLS-9).
    pub(super) fn out_of_reach(&self, selected: bool) -> bool {
        let config_map = |name: &String| name.starts_with("configmap://");
        matches!(self.mode, Mode::Simple | Mode::Mutual)
            && !selected
            && self.credential.as_ref().is_some_and(|name| !config_map(name))
    }

    /// The TLS that `service`'s traffic gets under a rule with a workload selector, or without.
    pub(super) fn origination(
        &self,
        service: &ServicePort<'_>,
        selected: bool,
        profile: Enforcement,
    ) -> Option<Origination> {
        let impossible = Origination { verify: Verify::Impossible, ..Origination::default() };
        match self.mode {
            Mode::Disable => return None,
            // Only between mesh proxies (TLS-16), and there is no mesh identity here: plaintext
            // would be something else than what was asked for.
            Mode::IstioMutual => return Some(impossible),
            Mode::Simple | Mode::Mutual => {}
        }
        if self.out_of_reach(selected) {
            return match profile {
                Enforcement::Istio => None,
                Enforcement::Strict => Some(impossible),
            };
        }
        let trust = match (&self.credential, &self.ca) {
            (Some(name), _) => Trust::Secret(name.clone()),
            (None, Some(path)) => Trust::File(path.clone()),
            (None, None) => Trust::System,
        };
        let identity = match (self.mode, &self.credential, &self.certificate, &self.key) {
            (Mode::Mutual, Some(name), ..) => Some(Identity::Secret(name.clone())),
            (Mode::Mutual, None, Some(certificate), Some(key)) => {
                Some(Identity::Files { certificate: certificate.clone(), key: key.clone() })
            }
            _ => None,
        };
        let mut names = match self.subject_alt_names.as_slice() {
            [] => service.subject_alt_names.to_vec(),
            own => own.to_vec(),
        };
        let verify = if self.skip_verify {
            Verify::Nothing
        } else {
            self.verify(service, &mut names, profile)
        };
        Some(Origination {
            sni: self.sni.clone(),
            trust,
            identity,
            subject_alt_names: names,
            crl: self.crl.clone(),
            verify,
        })
    }

    /// TLS-7; strict never leaves the name unchecked (T-44, GAP-13): it takes the name that the rule
    /// sends, or the service's own.
    fn verify(
        &self,
        service: &ServicePort<'_>,
        names: &mut Vec<String>,
        profile: Enforcement,
    ) -> Verify {
        // The request's Host is checked where there are requests and nothing else was named.
        let by_host = self.sni.is_none() && service.kind != PortKind::Opaque;
        if !names.is_empty() || by_host {
            return Verify::ChainAndName;
        }
        match (profile, &self.sni) {
            (Enforcement::Istio, _) => Verify::ChainOnly,
            (Enforcement::Strict, Some(sni)) => {
                names.push(sni.clone());
                Verify::ChainAndName
            }
            (Enforcement::Strict, None) if !service.host.starts_with('*') => {
                names.push(service.host.to_owned());
                Verify::ChainAndName
            }
            (Enforcement::Strict, None) => Verify::Impossible,
        }
    }
}
