//! Requests of browsers that ask for another origin (VS-29), in the model world.

use super::client::Request;
use super::exchange::Exchanged;
use crate::decide::route::Cors;

/// The origin, if the policy lets it ask (VS-29).
fn allowed_origin(cors: &Cors, request: &Request) -> Option<String> {
    let origin = request.header("origin")?;
    cors.origins.iter().any(|allowed| allowed.matches(&origin)).then_some(origin)
}

/// Answers a preflight, if this is one and it is ours to answer.
pub(super) fn preflight(cors: &Cors, request: &Request) -> Option<Exchanged> {
    if request.method != "OPTIONS" || request.header("access-control-request-method").is_none() {
        return None;
    }
    request.header("origin")?;
    let mut done = Exchanged::local(200, "cors_response", "");
    if allowed_origin(cors, request).is_none() {
        return (!cors.forward_unmatched).then_some(done);
    }
    allow_origin(cors, request, &mut done.response.headers);
    let mut list = |name: &str, values: &[String]| {
        if !values.is_empty() {
            done.response.headers.push((name.into(), values.join(",")));
        }
    };
    list("access-control-allow-methods", &cors.methods);
    list("access-control-allow-headers", &cors.headers);
    if let Some(age) = cors.max_age {
        list("access-control-max-age", &[age.as_secs().to_string()]);
    }
    Some(done)
}

/// What every answer to an allowed origin carries.
pub(super) fn allow_origin(cors: &Cors, request: &Request, headers: &mut Vec<(String, String)>) {
    let Some(origin) = allowed_origin(cors, request) else { return };
    headers.push(("access-control-allow-origin".into(), origin));
    if cors.credentials == Some(true) {
        headers.push(("access-control-allow-credentials".into(), "true".into()));
    }
    if !cors.expose.is_empty() && request.method != "OPTIONS" {
        headers.push(("access-control-expose-headers".into(), cors.expose.join(",")));
    }
}
