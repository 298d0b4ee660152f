//! An explanation as text for people, and as JSON for programs.

use std::fmt;

use serde::Serialize;

use super::{Candidate, Expect, Explanation, Nearest, Way};
use crate::policy::{Enforcement, Outbound};

impl Explanation {
    fn enforcement(&self) -> &'static str {
        match self.snapshot.enforcement {
            Enforcement::Strict => "strict",
            Enforcement::Istio => "istio",
        }
    }

    fn outbound(&self) -> &'static str {
        match self.snapshot.outbound {
            Outbound::AllowAny => "ALLOW_ANY",
            Outbound::RegistryOnly => "REGISTRY_ONLY",
            Outbound::AllowAnyDynamicDns => "ALLOW_ANY_DYNAMIC_DNS",
        }
    }

    /// One JSON object; `flow` and `expect` have the names of scenario files.
    ///
    /// # Errors
    /// None in practice: everything in it is text, numbers and lists.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let question = &self.question;
        let host = question.authority();
        let http = question.first.is_http().then_some(FlowHttp {
            method: "GET",
            path: &question.path,
            host: &host,
        });
        let tls = question.first == super::FirstBytes::Tls;
        serde_json::to_string_pretty(&Json {
            enforcement: self.enforcement(),
            outbound: self.outbound(),
            flow: Flow {
                transport: "tcp",
                dst: (!self.dialled.assumed).then(|| self.dialled.addr.to_string()),
                first_bytes: question.first.word(),
                sni: question.name().filter(|_| tls).map(ToString::to_string),
                http,
            },
            steps: self.steps.iter().map(|(stage, finding)| Step { stage, finding }).collect(),
            way: self.way,
            candidates: &self.candidates,
            more_candidates: self.more_candidates,
            allowed: self.outcome.allowed,
            reason: self.reason.1,
            rule: self.rule.as_deref(),
            expect: &self.outcome.expect,
            upstreams: &self.outcome.upstreams,
            log_line: self.outcome.log.as_deref(),
            nearest: self.nearest.as_ref(),
            would_allow: self.would_allow.as_deref(),
            notices: &self.notices,
        })
    }
}

#[derive(Serialize)]
struct Json<'a> {
    enforcement: &'a str,
    outbound: &'a str,
    flow: Flow<'a>,
    steps: Vec<Step<'a>>,
    #[serde(flatten)]
    way: Way,
    candidates: &'a [Candidate],
    more_candidates: usize,
    allowed: bool,
    reason: &'a str,
    rule: Option<&'a str>,
    expect: &'a Expect,
    upstreams: &'a [String],
    log_line: Option<&'a str>,
    nearest: Option<&'a Nearest>,
    would_allow: Option<&'a str>,
    notices: &'a [String],
}

#[derive(Serialize)]
struct Flow<'a> {
    transport: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<String>,
    first_bytes: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<FlowHttp<'a>>,
}

#[derive(Serialize)]
struct FlowHttp<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
}

#[derive(Serialize)]
struct Step<'a> {
    stage: &'a str,
    finding: &'a str,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expect = &self.outcome.expect;
        writeln!(
            f,
            "{} ({}), enforcement {}, outbound policy {}",
            self.dialled.show(&self.question),
            self.question.first.word(),
            self.enforcement(),
            self.outbound()
        )?;
        for (stage, finding) in &self.steps {
            row(f, stage, finding)?;
        }
        let why = self.way.why.map_or(String::new(), |why| format!(" ({why})"));
        row(f, "tier", &format!("{}{why}: {}", self.way.tier, self.way.text))?;
        if self.candidates.is_empty() {
            row(f, "candidates", "none")?;
        }
        for (at, candidate) in self.candidates.iter().enumerate() {
            let label = if at == 0 { "candidates" } else { "" };
            let mark = if candidate.chosen { "taken" } else { "not taken" };
            let Candidate { resource, offers, because, .. } = candidate;
            row(f, label, &format!("{resource}, {offers}: {mark}, {because}"))?;
        }
        if self.more_candidates > 0 {
            row(f, "", &format!("and {} more", self.more_candidates))?;
        }
        row(f, "route", &expect.route)?;
        row(f, "cluster", &expect.cluster)?;
        for (cluster, weight) in &expect.distribution {
            row(f, "", &format!("{cluster} with weight {weight}"))?;
        }
        row(f, "upstream", &or_dash(self.outcome.upstreams.join(", ")))?;
        if let Some(target) = &expect.proxy_target {
            row(f, "through", &format!("an egress proxy, which is asked for {target}"))?;
        }
        row(f, "TLS", &self.tls())?;
        let status = expect.status.map_or(String::new(), |status| format!(" {status}"));
        row(
            f,
            "verdict",
            &format!("{}{status} ({}): {}", expect.verdict, self.reason.1, self.reason.0),
        )?;
        if let Some(rule) = &self.rule {
            row(f, "decided by", rule)?;
        }
        row(f, "log line", self.outcome.log.as_deref().unwrap_or("none"))?;
        if self.dialled.assumed {
            let note = "which address the name has is not known: one that no resource lists is \
                        assumed (--dst IP or --resolve)";
            row(f, "note", note)?;
        }
        if self.outcome.allowed {
            return Ok(());
        }
        match &self.nearest {
            Some(Nearest { resource, offers, hint }) => {
                row(f, "nearest", &format!("{resource}, {offers}: {hint}"))?;
            }
            None => row(f, "nearest", "no resource comes near")?,
        }
        match &self.would_allow {
            Some(yaml) => write!(f, "\nThis would allow it:\n\n{yaml}"),
            None => row(f, "allowed by", "no further ServiceEntry; something there has to change"),
        }
    }
}

impl Explanation {
    fn tls(&self) -> String {
        let through = self.question.first == super::FirstBytes::Tls;
        match &self.outcome.expect.upstream_tls {
            Some(tls) if tls.originated => format!(
                "originated, SNI {}, verification: {}{}",
                tls.sni.as_deref().unwrap_or("-"),
                tls.verify.as_deref().unwrap_or("-"),
                if tls.client_certificate == Some(true) {
                    ", with a client certificate"
                } else {
                    ""
                }
            ),
            Some(_) if through => "the client's own, passed through untouched".to_owned(),
            _ => "-".to_owned(),
        }
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn row(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {label:<12} {text}")
}
