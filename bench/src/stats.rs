//! The arithmetic of the results, and nothing else.

/// Which way round a ratio is made, so that above 1 is always better than no interception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Operations a second: ours / direct.
    More,
    /// Microseconds: direct / ours.
    Less,
}

/// The ratio of one round's figure to that of no interception in the same round.
pub(crate) fn ratio(better: Better, ours: f64, direct: f64) -> f64 {
    match better {
        Better::More => ours / direct,
        Better::Less => direct / ours,
    }
}

/// The value below which this share (0 to 1) of sorted values lies, by nearest rank; none of nothing.
pub(crate) fn percentile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    // A share of a length fits into a length.
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The middle value; the mean of the middle two where the count is even; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// How far the middle half of the values lies apart: third quartile less first.
pub(crate) fn spread(values: &[f64]) -> f64 {
    quantile(values, 0.75) - quantile(values, 0.25)
}

/// Linear between neighbours, as most statistics programs do by default.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }

    #[test]
    fn above_1_is_better_whichever_way_the_figure_counts() {
        close(ratio(Better::More, 50.0, 100.0), 0.5);
        close(ratio(Better::Less, 200.0, 100.0), 0.5);
        close(ratio(Better::Less, 80.0, 100.0), 1.25);
    }

    #[test]
    fn medians_take_no_notice_of_order_and_outliers() {
        close(median(&[3.0, 1000.0, 1.0]), 3.0);
        close(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        close(median(&[7.0]), 7.0);
        close(median(&[]), 0.0);
    }

    #[test]
    fn spread_is_the_middle_half() {
        close(spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), 2.0);
        close(spread(&[5.0, 1.0, 100.0, 2.0, 3.0]), 3.0);
        close(spread(&[0.9, 0.9, 0.9]), 0.0);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50));
        assert_eq!(percentile(&hundred, 0.99), Some(99));
        assert_eq!(percentile(&[7], 0.99), Some(7));
        assert_eq!(percentile(&hundred[..0], 0.5), None);
    }
}
