//! Which inputs lie in the repository: few, and as much coverage as these can have.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use super::{LONGEST, Target};
use crate::shell::{check, root};

/// Most inputs of one target.
const MOST: usize = 200;

/// What an input reaches.
#[derive(Debug, Default, PartialEq)]
struct Reach {
    file: PathBuf,
    features: HashSet<u32>,
}

/// Chooses anew what of a target is kept.
pub(super) fn keep(target: &Target) -> Result<()> {
    let scratch = root().join("target/fuzz/merge").join(&target.0);
    let control = scratch.with_extension("control");
    let _ = fs::remove_dir_all(&scratch);
    let _ = fs::remove_file(&control);
    fs::create_dir_all(&scratch)?;
    fs::create_dir_all(target.kept())?;
    let mut merge = target.libfuzzer();
    merge.arg("-set_cover_merge=1").arg(format!("-merge_control_file={}", control.display()));
    merge.arg(&scratch).args([target.kept(), target.found()]);
    check(merge.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    let said = fs::read_to_string(&control).with_context(|| control.display().to_string())?;
    let all = reaches(&said);
    let count = all.len();
    let chosen = choose(all, MOST);

    // The new ones are read before the old ones go.
    let mut bytes = Vec::new();
    for file in &chosen {
        bytes.push((name(file), fs::read(file)?));
    }
    fs::remove_dir_all(target.kept())?;
    fs::create_dir_all(target.kept())?;
    for (name, bytes) in bytes.iter().filter(|(_, bytes)| bytes.len() <= LONGEST) {
        fs::write(target.kept().join(name), bytes)?;
    }
    println!("{:<18} {} of {count} inputs kept", target.0, chosen.len());
    Ok(())
}

fn name(file: &Path) -> PathBuf {
    file.file_name().map(PathBuf::from).unwrap_or_default()
}

/// From libFuzzer's control file of a merge: a count, a count, as many paths; then for each input
/// `STARTED number size` and `FT number feature…`.
fn reaches(said: &str) -> Vec<Reach> {
    let mut lines = said.lines();
    let count = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    let mut all: Vec<Reach> = lines
        .by_ref()
        .skip(1)
        .take(count)
        .map(|path| Reach { file: path.into(), ..Reach::default() })
        .collect();
    for line in lines {
        let mut words = line.split_whitespace();
        if words.next() == Some("FT")
            && let Some(reach) = words.next().and_then(|n| all.get_mut(n.parse::<usize>().ok()?))
        {
            reach.features.extend(words.filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    all
}

/// At most `most` of them: always the one next that adds most to those before.
fn choose(mut all: Vec<Reach>, most: usize) -> Vec<PathBuf> {
    let mut chosen = Vec::new();
    while chosen.len() < most {
        let Some(best) = (0..all.len()).max_by_key(|at| all[*at].features.len()) else { break };
        let best = all.swap_remove(best);
        if best.features.is_empty() {
            break;
        }
        for other in &mut all {
            other.features.retain(|feature| !best.features.contains(feature));
        }
        chosen.push(best.file);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_add_most_are_kept() {
        let said = "4\n0\n/c/a\n/c/b\n/c/c\n/c/d\nSTARTED 0 3\nFT 0 1 2\nCOV 0 1\nSTARTED 1 9\n\
                    FT 1 1 2 3 4\nSTARTED 2 1\nFT 2 9\nSTARTED 3 1\nFT 3 4\n";
        let all = reaches(said);
        assert_eq!(all.len(), 4);
        assert_eq!(all[2], Reach { file: "/c/c".into(), features: HashSet::from([9]) });
        let names = |most| choose(reaches(said), most);
        assert_eq!(names(9), ["/c/b", "/c/c"].map(PathBuf::from));
        assert_eq!(names(1), [PathBuf::from("/c/b")]);
    }
}
