//! Cases that cannot hold live yet, each with what it waits for. A listed case that holds is a
//! failure, so that the list stays true in both directions.

/// What is waited for, and the cases that wait for it.
const WAITING: [(&str, &[&str]); 0] = [];

/// What this case waits for.
pub(super) fn reason(id: &str) -> Option<&'static str> {
    WAITING.iter().find(|(_, ids)| ids.contains(&id)).map(|(reason, _)| *reason)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::live::case;

    #[test]
    fn every_case_on_the_list_exists_once() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let cases = case::read_all(&[root.join("istio"), root.join("strict")]).expect("our cases");
        let ids: BTreeSet<_> = cases.iter().map(|case| case.id.as_str()).collect();
        let listed: Vec<_> = WAITING.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let distinct: BTreeSet<_> = listed.iter().copied().collect();
        assert_eq!(listed.len(), distinct.len());
        assert!(distinct.is_subset(&ids), "{:?}", distinct.difference(&ids));
    }
}
