//! Where this kernel keeps a field, by its own type information (BTF, Documentation/bpf/btf.rst).

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
/// In the word of a member's place: the rest is the width of a bit field.
const PLACE: u32 = 0x00ff_ffff;

/// The offset in bytes of a member of a structure; `None`: the kernel does not say, or there is none.
pub(super) fn offset_of(structure: &str, member: &str) -> Option<u32> {
    find(&std::fs::read("/sys/kernel/btf/vmlinux").ok()?, structure, member)
}

fn find(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    if btf.get(..2)? != MAGIC.to_ne_bytes() {
        return None;
    }
    let header = word(btf, 4)?;
    let section = |at: usize| Some((header + word(btf, at)?) as usize);
    let (types, strings) = (section(8)?, section(16)?);
    let end = types + word(btf, 12)? as usize;
    let is = |name: u32, text: &str| {
        let from = btf.get(strings + name as usize..);
        let rest = from.and_then(|from| from.strip_prefix(text.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = types;
    while at < end {
        let (name, info) = (word(btf, at)?, word(btf, at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let members = at + 12;
        if kind == STRUCT && is(name, structure) {
            let mut all = (0..count).map(|n| members + 12 * n);
            let found = all.find(|at| word(btf, *at).is_some_and(|name| is(name, member)))?;
            return Some((word(btf, found + 8)? & PLACE) / 8);
        }
        at = members + 4 * words(kind, count)?;
    }
    None
}

/// How many words follow a type of this kind.
fn words(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Integer, variable, tag of a declaration.
        1 | 14 | 17 => 1,
        // Pointer, forward, typedef, qualifiers, function, float, tag of a type.
        2 | 7..=12 | 16 | 18 => 0,
        // Array.
        3 => 3,
        // Structure, union, section, enumeration of 64 bits.
        STRUCT | 5 | 15 | 19 => 3 * count,
        // Enumeration, prototype.
        6 | 13 => 2 * count,
        _ => return None,
    })
}

fn word(btf: &[u8], at: usize) -> Option<u32> {
    btf.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, an integer, `struct a { x: 0, y: 8 }`, `struct ab { x: 4 }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0ab\0x\0y\0";
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types = [
            [1, kind(1, 0), 4, 32].to_vec(),
            [5, kind(4, 2), 16, 10, 1, 0, 12, 1, 64].to_vec(),
            [7, kind(4, 1), 16, 10, 1, 32].to_vec(),
        ]
        .concat();
        let length = 4 * types.len() as u32;
        let header = [24, 0, length, length, strings.len() as u32];
        let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
        let start = MAGIC.to_ne_bytes().into_iter().chain([1, 0]);
        start.chain(words).chain(*strings).collect()
    }

    #[test]
    fn a_member_is_found_by_whole_names() {
        let btf = sample();
        assert_eq!(find(&btf, "a", "y"), Some(8));
        assert_eq!(find(&btf, "ab", "x"), Some(4));
        for (structure, member) in [("a", "z"), ("b", "x"), ("int", "x"), ("ab", "y")] {
            assert_eq!(find(&btf, structure, member), None, "{structure}.{member}");
        }
        for length in 0..btf.len() - 30 {
            assert_eq!(find(&btf[..length], "ab", "x"), None, "{length} bytes");
        }
    }
}
