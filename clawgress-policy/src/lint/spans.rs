//! Sets of numbers: ports, moments, addresses, counts.

use ipnet::IpNet;

use crate::prefix::Prefix;

/// A set of numbers as ascending inclusive spans, with gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spans(Vec<(u128, u128)>);

/// The place of a signed number among unsigned ones.
fn place(n: i64) -> u128 {
    // Never negative: the least i64 goes to 0.
    u128::try_from(i128::from(n) - i128::from(i64::MIN)).unwrap_or(0)
}

impl Spans {
    pub(super) fn new(mut spans: Vec<(u128, u128)>) -> Spans {
        spans.retain(|(first, last)| first <= last);
        spans.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match joined.last_mut() {
                Some(before) if before.1.checked_add(1).is_none_or(|next| first <= next) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Spans(joined)
    }

    /// Signed numbers, both ends inclusive.
    pub(super) fn of_longs(spans: impl IntoIterator<Item = (i64, i64)>) -> Spans {
        Spans::new(spans.into_iter().map(|(first, last)| (place(first), place(last))).collect())
    }

    /// The addresses of prefixes. What an IPv6 prefix says does not reach the space that IPv4 lies in.
    pub(super) fn of_nets<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Spans {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for net in nets {
            let prefix = Prefix::of(*net);
            let span = (prefix.first(), prefix.last());
            if matches!(net, IpNet::V4(_)) { four.push(span) } else { six.push(span) }
        }
        let v4 = Spans::new(vec![(Prefix::IPV4.first(), Prefix::IPV4.last())]);
        let six = Spans::new(six).and(&v4.not());
        four.extend(six.0);
        Spans::new(four)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn and(&self, other: &Spans) -> Spans {
        let (mut mine, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some((a, b)), Some((c, d))) = (mine.peek(), theirs.peek()) {
            let (first, last) = (*a.max(c), *b.min(d));
            if first <= last {
                both.push((first, last));
            }
            if b < d {
                mine.next()
            } else {
                theirs.next()
            };
        }
        Spans(both)
    }

    pub(super) fn not(&self) -> Spans {
        let mut others = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(0);
        for (first, last) in &self.0 {
            if let (Some(from), Some(to)) = (next, first.checked_sub(1))
                && from <= to
            {
                others.push((from, to));
            }
            next = last.checked_add(1);
        }
        others.extend(next.map(|from| (from, u128::MAX)));
        Spans(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_sets() {
        let a = Spans::of_longs([(80, 90), (91, 95), (443, 443), (9, 3)]);
        assert_eq!(a, Spans::of_longs([(80, 95), (443, 443)]));
        let b = Spans::of_longs([(i64::MIN, 82), (95, i64::MAX)]);
        assert_eq!(a.and(&b), Spans::of_longs([(80, 82), (95, 95), (443, 443)]));
        assert!(a.and(&a.not()).is_empty());
        assert_eq!(a.not().not(), a);
        assert_eq!(Spans::new(Vec::new()).not(), Spans::new(vec![(0, u128::MAX)]));
    }

    #[test]
    fn six_says_nothing_of_four() {
        let nets =
            |list: &[&str]| Spans::of_nets(&list.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>());
        assert!(nets(&["::/0"]).and(&nets(&["10.0.0.0/8"])).is_empty());
        assert!(!nets(&["::/0"]).and(&nets(&["2001:db8::/32"])).is_empty());
        assert!(!nets(&["0.0.0.0/0"]).and(&nets(&["10.0.0.0/8"])).is_empty());
    }
}
