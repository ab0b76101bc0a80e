//! Windows against a list of what happened.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(past: &Past, now_s: i64, requests: [u64; 3], denied: [u64; 3]) {
    let of = |[minute, hour, day]: [u64; 3]| Counts { minute, hour, day };
    assert_eq!(past.counts(now_s), (of(requests), of(denied)));
}

#[test]
fn what_is_over_counts_no_more() {
    let mut past = Past::default();
    check(&past, 0, [0; 3], [0; 3]);
    let start = 1_795_632_300;
    past.note(false, start);
    past.note(true, start + 1);
    check(&past, start + 1, [2, 2, 2], [1, 1, 1]);
    check(&past, start + 59, [2, 2, 2], [1, 1, 1]);
    check(&past, start + 60, [1, 2, 2], [1, 1, 1]);
    check(&past, start + 61, [0, 2, 2], [0, 1, 1]);
    check(&past, start + 3_600, [0, 0, 2], [0, 0, 1]);
    past.note(false, start + 90_000);
    check(&past, start + 90_000, [1, 1, 1], [0, 0, 0]);
}

#[test]
fn a_clock_that_goes_back_loses_nothing() {
    let mut past = Past::default();
    past.note(false, 1_000_000);
    past.note(false, 999_990);
    check(&past, 999_990, [2, 2, 2], [0; 3]);
    check(&past, 1_000_000, [2, 2, 2], [0; 3]);
    check(&past, 1_000_060, [0, 2, 2], [0; 3]);
    // One that was ahead by more than a window, and is set right, keeps nothing from ageing.
    past.note(false, 9_000_000);
    check(&past, 1_000_060, [0, 0, 0], [0; 3]);
    past.note(true, 1_000_061);
    check(&past, 1_000_061, [1, 1, 1], [1, 1, 1]);
    check(&past, 1_000_200, [0, 1, 1], [0, 1, 1]);
}

#[test]
fn every_attribute_has_its_name() {
    for field in Field::ALL {
        assert_eq!(Field::named(field.name()), Some(field));
    }
    assert_eq!(Field::named("history"), None);
}

proptest! {
    /// What the windows say is what a list says, also after it was written down and read.
    #[test]
    fn windows_are_lists(steps in proptest::collection::vec((0i64..5_000, any::<bool>()), 1..200), later in 0i64..100_000) {
        let (mut past, mut list, mut now) = (Past::default(), Vec::new(), 1_795_632_300i64);
        for (step, is_denied) in steps {
            now += step;
            past.note(is_denied, now);
            list.push((now, is_denied));
        }
        let written = serde_json::to_string(&past).expect("json");
        let past: Past = serde_json::from_str(&written).expect("read back");
        let now = now + later;
        let count = |slot: i64, slots: i64, only_denied: bool| {
            let from = now.div_euclid(slot) - slots;
            list.iter().filter(|(at, denied)| at.div_euclid(slot) > from && (*denied || !only_denied)).count() as u64
        };
        let of = |only_denied| Counts {
            minute: count(1, 60, only_denied),
            hour: count(60, 60, only_denied),
            day: count(3600, 24, only_denied),
        };
        prop_assert_eq!(past.counts(now), (of(false), of(true)));
    }
}
