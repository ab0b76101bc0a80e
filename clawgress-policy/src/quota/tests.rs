//! The ledger against what is written of it, and against a bucket on paper.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Pace = Pace { count: 60, period_s: 60, burst: 5 };

fn scope(limit: u64, pace: Pace, want: u64, least: u64) -> Scope {
    Scope { limit, subject: "a".into(), pace, want, least }
}

fn granted(answer: Result<Answer, QuotaError>) -> Vec<u64> {
    match answer {
        Ok(Answer::Granted(units)) => units,
        other => panic!("not granted: {other:?}"),
    }
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let mut ledger = Ledger::default();
    let one = [scope(1, MINUTE, 1, 1)];
    let t = Duration::from_secs(100);
    for id in 0..5 {
        assert_eq!(granted(ledger.reserve(id, &one, SECOND * 10, t)), [1]);
    }
    let short = ledger.reserve(5, &one, SECOND * 10, t + SECOND / 4);
    assert_eq!(short, Ok(Answer::Short { scope: 0, wait: SECOND * 3 / 4 }));
    assert_eq!(granted(ledger.reserve(5, &one, SECOND * 10, t + SECOND)), [1]);
    // Fewer than are wanted, if those are of use.
    let many = [scope(1, MINUTE, 9, 2)];
    let short = ledger.reserve(6, &many, SECOND, t + SECOND);
    assert_eq!(short, Ok(Answer::Short { scope: 0, wait: SECOND * 2 }));
    assert_eq!(granted(ledger.reserve(6, &many, SECOND, t + SECOND * 4)), [3]);
    // Never more than the burst, however long nobody asks; nor by a clock that steps back.
    assert_eq!(granted(ledger.reserve(7, &many, SECOND, t + SECOND * 3_600)), [5]);
    assert!(matches!(ledger.reserve(8, &one, SECOND, t), Ok(Answer::Short { .. })));
}

#[test]
fn it_is_all_or_nothing() {
    let mut ledger = Ledger::default();
    let (wide, narrow) = (Pace { burst: 100, ..MINUTE }, Pace { burst: 1, ..MINUTE });
    let both = [scope(1, wide, 1, 1), scope(2, narrow, 1, 1)];
    assert_eq!(granted(ledger.reserve(1, &both, SECOND, SECOND)), [1, 1]);
    for id in 2..200 {
        let short = ledger.reserve(id, &both, SECOND, SECOND);
        assert_eq!(short, Ok(Answer::Short { scope: 1, wait: SECOND }));
    }
    assert_eq!(granted(ledger.reserve(1_000, &[scope(1, wide, 200, 1)], SECOND, SECOND)), [99]);
}

#[test]
fn what_was_not_used_goes_back_once() {
    let mut ledger = Ledger::default();
    let all = [scope(1, MINUTE, 5, 1)];
    assert_eq!(granted(ledger.reserve(1, &all, SECOND * 10, SECOND)), [5]);
    assert_eq!(granted(ledger.reserve(1, &all, SECOND * 10, SECOND)), [5], "asked again, answered again");
    assert_eq!(ledger.reserve(1, &[scope(1, MINUTE, 4, 1)], SECOND, SECOND), Err(QuotaError::IdUsed));
    assert_eq!(ledger.commit(1, &[2, 0], SECOND), Err(QuotaError::Malformed));
    assert_eq!(ledger.commit(1, &[2], SECOND), Ok(()));
    assert_eq!(ledger.commit(1, &[0], SECOND), Err(QuotaError::Unknown), "it is settled");
    assert_eq!(ledger.release(1, SECOND), Err(QuotaError::Unknown));
    assert_eq!(ledger.reserve(1, &all, SECOND, SECOND), Err(QuotaError::IdUsed), "a late repetition");
    assert_eq!(granted(ledger.reserve(2, &all, SECOND * 10, SECOND)), [3]);
    assert_eq!(ledger.release(2, SECOND), Ok(()));
    assert_eq!(granted(ledger.reserve(3, &all, SECOND * 10, SECOND)), [3]);
    // More than was granted is a debt.
    assert_eq!(ledger.commit(3, &[5], SECOND), Ok(()));
    assert!(matches!(ledger.reserve(4, &all, SECOND, SECOND), Ok(Answer::Short { .. })));
}

#[test]
fn what_nobody_settles_is_used() {
    let mut ledger = Ledger::default();
    let all = [scope(1, Pace { count: 1, period_s: 3_600, burst: 5 }, 5, 1)];
    assert_eq!(granted(ledger.reserve(1, &all, SECOND, SECOND)), [5]);
    assert_eq!(ledger.commit(1, &[0], SECOND * 2), Err(QuotaError::Unknown), "its time is over");
    assert!(matches!(ledger.reserve(2, &all, SECOND, SECOND * 2), Ok(Answer::Short { .. })));
    assert_eq!(ledger.size(), (1, 0));
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let mut ledger = Ledger::default();
    let good = scope(1, MINUTE, 1, 1);
    let with = |pace: Pace| vec![Scope { pace, ..good.clone() }];
    let bad = [
        vec![],
        vec![good.clone(); 2],
        (0..=SCOPES_MAX as u64).map(|limit| Scope { limit, ..good.clone() }).collect(),
        vec![Scope { least: 0, ..good.clone() }],
        vec![Scope { least: 2, ..good.clone() }],
        vec![Scope { least: 6, want: 6, ..good.clone() }],
        vec![Scope { subject: "x".repeat(SUBJECT_BYTES_MAX + 1).into(), ..good.clone() }],
        with(Pace { count: 0, ..MINUTE }),
        with(Pace { count: UNITS_MAX + 1, ..MINUTE }),
        with(Pace { burst: 0, ..MINUTE }),
        with(Pace { period_s: 0, ..MINUTE }),
        with(Pace { period_s: PERIOD_S_MAX + 1, ..MINUTE }),
    ];
    for scopes in bad {
        assert_eq!(ledger.reserve(1, &scopes, SECOND, SECOND), Err(QuotaError::Malformed), "{scopes:?}");
    }
    assert_eq!(ledger.size(), (0, 0));
    let most = Pace { count: UNITS_MAX, period_s: PERIOD_S_MAX, burst: UNITS_MAX };
    let far = Duration::from_secs(u64::from(u32::MAX));
    assert_eq!(granted(ledger.reserve(1, &[scope(1, most, u64::MAX, 1)], SECOND, far)), [UNITS_MAX]);
}

#[test]
fn full_tables_refuse_and_recover() {
    let mut ledger = Ledger::default();
    let one = |limit: u64| [scope(limit, MINUTE, 1, 1)];
    // One tenant alone may have seven ninths.
    for limit in 0..BUCKETS_MAX as u64 * 7 / 9 {
        granted(ledger.reserve(limit.into(), &one(limit), SECOND * 9, SECOND));
    }
    assert_eq!(ledger.reserve(1 << 64, &one(1 << 60), SECOND, SECOND), Err(QuotaError::Full));
    // Reservations end, buckets fill.
    granted(ledger.reserve(1 << 64, &one(1 << 60), SECOND, SECOND * 10));
    assert_eq!(ledger.size(), (1, 1));
}

/// One that takes all it can get leaves room for another, of either kind; and what is settled takes none.
#[test]
fn no_tenant_takes_all() {
    let mut ledger = Ledger::default();
    let of = |tenant: &str, limit: u64| {
        [Scope { subject: format!("agent {tenant}/a#1").into(), ..scope(limit, MINUTE, 1, 1) }]
    };
    let mut taken = 0;
    while ledger.reserve(taken.into(), &of("hog", taken), SECOND * 9, SECOND).is_ok() {
        taken += 1;
    }
    assert!(taken as usize >= 100_000, "{taken}: every agent of a node under ten limits");
    let mut left = 0;
    while ledger.reserve(u128::from(left) + (1 << 64), &of("other", left), SECOND * 9, SECOND).is_ok() {
        left += 1;
    }
    assert!(left > 10_000, "{left} for who comes then");
    // As fast as small lots are used up: what was spent of before is settled with the next question.
    let mut ledger = Ledger::default();
    let fast = Pace { count: 1_000_000, period_s: 1, burst: 1 };
    let mut now = SECOND;
    for n in 0..300_000u128 {
        now += Duration::from_micros(1);
        if n > 0 {
            ledger.spent(n - 1, now);
        }
        assert_eq!(granted(ledger.reserve(n, &[scope(1, fast, 1, 1)], SECOND * 30, now)), [1], "{n}");
    }
    let (buckets, remembered) = ledger.size();
    assert!((buckets, remembered) <= (1, SETTLED_MAX + 1), "{remembered}");
    assert_eq!(ledger.reserve(299_998, &[scope(1, fast, 1, 1)], SECOND, now), Err(QuotaError::IdUsed));
    ledger.spent(1 << 100, now);
}

/// The bucket as the issue would have it on paper: what passed in any window is bounded.
#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Commit(u64),
    Release,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..8u64).prop_map(Step::Reserve),
        2 => (0..8u64).prop_map(Step::Commit),
        1 => Just(Step::Release),
        3 => (1..5_000_000_000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a bucket in floating point that knows nothing of reservations but what they came to; and no more
    /// than burst and rate ever passes.
    #[test]
    fn it_is_the_bucket_on_paper(
        count in 1..200u64,
        period_s in 1..90u32,
        burst in 1..50u64,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let pace = Pace { count, period_s, burst };
        let rate = count as f64 / f64::from(period_s);
        let (mut ledger, mut now) = (Ledger::default(), SECOND);
        let (mut level, mut held) = (burst as f64, None);
        let mut passed = 0u64;
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Wait(ns) => {
                    now += Duration::from_nanos(ns);
                    level = (level + rate * ns as f64 / 1e9).min(burst as f64);
                }
                Step::Reserve(want) if held.is_none() => {
                    // Longer than all steps take.
                    let life = SECOND * 3_000;
                    match ledger.reserve(id as u128, &[scope(1, pace, want, 1)], life, now) {
                        Ok(Answer::Granted(units)) => {
                            prop_assert!(units[0] >= 1 && units[0] <= want);
                            prop_assert!((units[0] as f64) <= level + 1e-6, "{} of {level}", units[0]);
                            prop_assert!(units[0] == want || level < units[0] as f64 + 1.0 + 1e-6);
                            level -= units[0] as f64;
                            held = Some((id as u128, units[0]));
                        }
                        Ok(Answer::Short { wait, .. }) => {
                            prop_assert!(level < 1.0 + 1e-6, "{level}");
                            prop_assert!((wait.as_secs_f64() - (1.0 - level) / rate).abs() < 1e-4);
                        }
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Commit(used) => if let Some((id, units)) = held.take() {
                    let used = used.min(units);
                    prop_assert_eq!(ledger.commit(id, &[used], now), Ok(()));
                    level = (level + (units - used) as f64).min(burst as f64);
                    passed += used;
                },
                Step::Release => if let Some((id, units)) = held.take() {
                    prop_assert_eq!(ledger.release(id, now), Ok(()));
                    level = (level + units as f64).min(burst as f64);
                },
                Step::Reserve(_) => {}
            }
            let most = burst as f64 + rate * (now - SECOND).as_secs_f64();
            prop_assert!(passed as f64 <= most + 1e-6);
        }
    }
}
