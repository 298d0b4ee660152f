//! How a case ended, from three sides: live, by the rules alone, and on the list of what waits.

/// How one case went live.
#[derive(Debug)]
pub(super) enum Played {
    /// As expected.
    Passed,
    /// Otherwise, or it could not be played: the differences.
    Failed(Vec<String>),
    /// The product cannot be given what the case needs.
    Unplayable(&'static str),
}

/// What is made of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both ways as expected.
    Passed,
    /// What is wrong, a line each.
    Failed(Vec<String>),
    /// On the list, and rightly: what it waits for.
    Waiting(&'static str),
}

/// Judges a case: `pure` is whether it passed by the rules alone, if that was run.
pub(super) fn judge(played: Played, pure: Option<bool>, waits: Option<&'static str>) -> Ending {
    let pure_side = match pure {
        Some(true) => None,
        Some(false) => Some("fails by the rules alone (`interceptor test` says why)"),
        // A case that only the live run knows would be a case that was not tested.
        None => Some("no result by the rules alone"),
    };
    let mut wrong = match (played, waits) {
        (Played::Failed(_) | Played::Unplayable(_), Some(reason)) => {
            return Ending::Waiting(reason);
        }
        (Played::Passed, Some(reason)) => {
            vec![format!("passes, and is listed as waiting for {reason}: take it off the list")]
        }
        (Played::Passed, None) => Vec::new(),
        (Played::Failed(differences), None) => differences,
        (Played::Unplayable(why), None) => vec![format!("cannot be played: {why}")],
    };
    wrong.extend(pure_side.map(str::to_owned));
    if wrong.is_empty() { Ending::Passed } else { Ending::Failed(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_live_pure_and_the_list_make_of_a_case() {
        let failed = || Played::Failed(vec!["status".into()]);
        let word = |ending| match ending {
            Ending::Passed => "passed".to_owned(),
            Ending::Waiting(reason) => format!("waits for {reason}"),
            Ending::Failed(wrong) => wrong.join("; "),
        };
        for (played, pure, waits, expected) in [
            (Played::Passed, Some(true), None, "passed"),
            (Played::Passed, Some(false), None, "fails by the rules alone"),
            (Played::Passed, None, None, "no result by the rules alone"),
            (Played::Passed, Some(true), Some("pods"), "passes, and is listed as waiting for pods"),
            (failed(), Some(true), None, "status"),
            (failed(), Some(false), None, "status; fails by the rules alone"),
            (failed(), Some(true), Some("pods"), "waits for pods"),
            (Played::Unplayable("no pods"), Some(true), None, "cannot be played: no pods"),
            (Played::Unplayable("no pods"), Some(true), Some("pods"), "waits for pods"),
        ] {
            let seen = word(judge(played, pure, waits));
            assert!(seen.starts_with(expected), "{seen}, not {expected}");
        }
    }
}
