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

/// So many decisions in the hour that begins then.
fn hour(past: &mut Past, at: i64, count: i64) {
    for n in 0..count {
        past.note(false, at + n * 3_599 / count.max(1));
    }
}

#[test]
fn a_surge_is_what_is_far_more_than_usual_at_that_hour() {
    const NINE: i64 = 1_795_597_200;
    const DAY: i64 = 86_400;
    let surge = |past: &Past, at: i64| past.anomalies(at).0;
    let mut past = Past::default();
    // An agent that works from nine to eleven, some 200 an hour.
    for day in 0..4 {
        let at = NINE + day * DAY;
        assert!(!surge(&past, at), "day {day}");
        hour(&mut past, at, 200);
        hour(&mut past, at + 3_600, 200);
        assert!(!surge(&past, at + 7_199), "day {day}: it is as usual, or not known yet");
    }
    let morning = NINE + 4 * DAY;
    let mut busy = past.clone();
    hour(&mut busy, morning, 801);
    assert!(surge(&busy, morning + 3_599), "more than four times");
    hour(&mut busy, morning + 3_600, 820);
    assert!(surge(&busy, morning + 7_199), "what was too much before does not make it usual");
    let mut fair = past.clone();
    hour(&mut fair, morning, 795);
    assert!(!surge(&fair, morning + 3_599));
    // At three in the afternoon it does nothing as a rule: a hundred are let be.
    let (afternoon, mut some, mut more) = (morning + 6 * 3_600, past.clone(), past.clone());
    hour(&mut some, afternoon, 100);
    hour(&mut more, afternoon, 101);
    assert!(!surge(&some, afternoon + 3_599) && surge(&more, afternoon + 3_599));
    // What a clock that went back says, and what is written down and read, comes to the same.
    let read: Past = serde_json::from_str(&serde_json::to_string(&busy).expect("json")).expect("read back");
    assert_eq!(read, busy);
    let mut back = past.clone();
    back.note(false, morning - 40 * DAY);
    assert!(!surge(&back, morning));
    // After a clock that was days ahead, nothing is usual until it is known anew.
    let mut ahead = past.clone();
    ahead.note(false, morning + 5 * DAY);
    hour(&mut ahead, morning, 300);
    assert!(!surge(&ahead, morning + 3_599));
    // After weeks of nothing, nothing is usual.
    let later = morning + 30 * DAY;
    hour(&mut past, later, 2_000);
    assert!(!surge(&past, later + 3_599));
}

#[test]
fn what_was_kept_before_there_were_averages_is_read() {
    let mut old = serde_json::to_value(Past::default()).expect("json");
    old.as_object_mut().expect("an object").remove("usual");
    assert_eq!(serde_json::from_value::<Past>(old).expect("read"), Past::default());
}

#[test]
fn a_burst_is_denial_after_denial() {
    let burst = |allowed: u32, denied: u32| {
        let mut past = Past::default();
        (0..allowed).for_each(|_| past.note(false, 1_000_000));
        (0..denied).for_each(|_| past.note(true, 1_000_000));
        assert!(!past.anomalies(1_000_060).1, "over");
        past.anomalies(1_000_059).1
    };
    assert_eq!([burst(0, 19), burst(0, 20), burst(20, 20), burst(21, 20)], [false, true, true, false]);
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
