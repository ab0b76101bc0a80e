//! Buckets that the agents of a group share.

use clawgress_ebpf_common::{Bucket, BucketKey, DropReason, mark};
use clawgress_identity::AgentState;
use clawgress_policy::kernel::{LimitUnit, Limiter};

use crate::frames::{ip, udp};
use crate::kernel::{Did, Kernel};
use crate::limits::{limited, limiter};
use crate::verdicts::{MAC, agents, families, ready};

const DROPPED: Did = Did::Dropped(DropReason::RateLimited);
const PASSED: Did = Did::Marked(mark::DIRECT);
/// So slow that no test sees it fill.
const NEVER_S: u32 = 3600;

/// Agents of a group share one bucket, whoever makes it; what is not shared each of them has to itself, in the same verdicts.
#[tokio::test(flavor = "multi_thread")]
async fn agents_of_a_group_share_a_bucket() {
    let mut kernel = ready().await;
    let mut all = agents();
    all[1].state = AgentState::Active;
    let slow = |key, burst| limiter(key, LimitUnit::Packets, burst, NEVER_S, burst);
    let team = Limiter { group: Some("team acme/payments".to_owned()), ..slow(1, 10) };
    kernel.apply(2, Some(limited(vec![team.clone(), slow(2, 6)])), all.clone()).await;
    let shared = |kernel: &Kernel| -> Vec<Bucket> {
        let all = kernel.buckets.all().expect("buckets");
        all.into_iter().filter(|(key, _)| key.limiter == 1).map(|(_, bucket)| bucket).collect()
    };
    let mut passed = 0;
    for f in families() {
        for (n, from) in [f.agent, f.disabled].into_iter().enumerate() {
            let frame = ip(MAC, from, f.direct, 17, &udp(7, 443, &[]));
            let did: Vec<Did> = (0..3).map(|_| kernel.ingress(&frame)).collect();
            // Ten of twelve: six of one agent and four of the other, which has two left of its own.
            let wanted = [
                PASSED,
                if passed == 9 { DROPPED } else { PASSED },
                if passed == 9 { DROPPED } else { PASSED },
            ];
            assert_eq!(did, wanted, "{f:?} {n}", f = f.agent);
            passed += did.iter().filter(|did| **did == PASSED).count();
        }
    }
    let bucket_of = |kernel: &Kernel, agent| {
        let key = BucketKey { limiter: 2, subject: agent };
        kernel.buckets.all().expect("buckets").into_iter().find(|(k, _)| *k == key).map(|(_, b)| b.passed)
    };
    assert_eq!(
        (bucket_of(&kernel, 1), bucket_of(&kernel, 2)),
        (Some(6), Some(4)),
        "none is charged for what the group's refuses"
    );
    let [one] = shared(&kernel)[..] else { panic!("{:?}", shared(&kernel)) };
    assert_eq!((one.passed, one.dropped, one.agent), (10, 2, 1));
    // Its counts are the group's, also when it is forgotten and another agent makes it anew.
    kernel.buckets.sweep(u64::MAX).expect("swept");
    let [f, _] = families();
    assert_eq!(kernel.ingress(&ip(MAC, f.disabled, f.direct, 17, &udp(7, 443, &[]))), PASSED);
    let totals = kernel.buckets.totals().expect("totals");
    assert_eq!(
        totals.get(&(1, 0)).map(|counts| (counts.passed, counts.dropped)),
        Some((11, 2)),
        "{totals:?}"
    );
    // The same limit of nobody's group: each agent's own.
    kernel.apply(3, Some(limited(vec![slow(3, 1)])), all).await;
    for from in [f.agent, f.disabled] {
        let frame = ip(MAC, from, f.direct, 17, &udp(7, 443, &[]));
        assert_eq!([kernel.ingress(&frame), kernel.ingress(&frame)], [PASSED, DROPPED]);
    }
    kernel.check_counts();
}
