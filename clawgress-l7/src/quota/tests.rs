//! Quarantines that control is told of late, by a control that answers when and as it is told.

use std::path::Path;

use clawgress_api::clock::SystemClock;
use clawgress_api::proto::enforcement_server::{Enforcement, EnforcementServer};
use clawgress_api::proto::{
    Document, Empty, HistoryRequest, ReleaseRequest, ReserveResponse, ResolvedRequest,
};
use clawgress_policy::effect::Share;
use clawgress_policy::quota::Pace;
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use super::*;

/// A question, and where its answer goes.
type Asked = (ImposeRequest, oneshot::Sender<Result<(), Status>>);

struct Control(mpsc::Sender<Asked>);

#[tonic::async_trait]
impl Enforcement for Control {
    async fn reserve(&self, _: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn commit(&self, _: Request<CommitRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<Document>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn resolved(&self, _: Request<ResolvedRequest>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn impose(&self, request: Request<ImposeRequest>) -> Result<Response<Empty>, Status> {
        let (answer, answered) = oneshot::channel();
        self.0.send((request.into_inner(), answer)).await.expect("a test");
        answered.await.expect("an answer").map(|()| Response::new(Empty {}))
    }
}

/// The proxy's side, and what it asks.
struct Site {
    quota: Quota,
    snapshots: Snapshots,
    asked: mpsc::Receiver<Asked>,
    _directory: tempfile::TempDir,
}

impl Site {
    fn start() -> Site {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("control.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let (sender, asked) = mpsc::channel(1);
        let server = tonic::transport::Server::builder().add_service(EnforcementServer::new(Control(sender)));
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tokio::spawn(server.serve_with_incoming(incoming));
        let channel = clawgress_api::socket::channel(&path).expect("channel");
        let quota = Quota::new(channel).expect("randomness");
        let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
        snapshots.hold(1);
        Site { quota, snapshots, asked, _directory: directory }
    }

    /// Imposes one that control can't take. Gives for how long it was asked to.
    async fn owe(&mut self, imposed: Imposed) -> u64 {
        let Site { quota, snapshots, asked, .. } = self;
        let away = async {
            let (question, answer) = asked.recv().await.expect("a question");
            answer.send(Err(Status::unavailable("away"))).expect("somebody waits");
            question.seconds
        };
        tokio::join!(quota.impose(imposed, snapshots), away).1
    }

    /// Has control be told of what is owed, of one at most, and take it. Gives for how long, if it was told.
    async fn tell(&mut self) -> Option<u64> {
        let Site { quota, snapshots, asked, .. } = self;
        let mut told = None;
        let mut telling = std::pin::pin!(quota.impose_owed(snapshots));
        loop {
            tokio::select! {
                () = &mut telling => return told,
                Some((question, answer)) = asked.recv() => {
                    assert_eq!(told.replace(question.seconds), None);
                    answer.send(Ok(())).expect("somebody waits");
                }
            }
        }
    }
}

fn imposed(seconds: Option<u64>, at: Instant) -> Imposed {
    Imposed { agent: 1, seconds, policy: "p".to_owned(), request: "r".to_owned(), at }
}

/// One request may be quarantined for twice: for what it is, and for what it sends.
#[tokio::test]
async fn of_two_that_are_owed_for_one_request_the_later_end_is_told() {
    let mut site = Site::start();
    let now = Instant::now();
    assert_eq!(site.owe(imposed(Some(60), now)).await, 60);
    let Site { quota, snapshots, asked, .. } = &mut site;
    // While control is told of the first.
    tokio::join!(quota.impose_owed(snapshots), async {
        let (first, taken) = asked.recv().await.expect("a question");
        assert_eq!(first.seconds, 60);
        tokio::join!(quota.impose(imposed(None, now), snapshots), async {
            let (_, away) = asked.recv().await.expect("a question");
            away.send(Err(Status::unavailable("away"))).expect("somebody waits");
        });
        taken.send(Ok(())).expect("somebody waits");
    });
    assert!(site.snapshots.waits_for_control(1), "it is owed another");
    assert_eq!(site.tell().await, Some(0), "without an end");
    assert!(!site.snapshots.waits_for_control(1));
    assert_eq!(site.tell().await, None);
}

#[tokio::test]
async fn what_is_owed_is_what_ends_last() {
    let mut site = Site::start();
    let now = Instant::now();
    let after = |s| now + Duration::from_secs(s);
    for (seconds, at) in [(900, now), (60, after(300)), (100, after(850)), (10, after(860))] {
        site.owe(imposed(Some(seconds), at)).await;
    }
    assert_eq!(site.tell().await, Some(100));
    // What control takes at once doesn't stand for what it is owed.
    site.owe(imposed(None, now)).await;
    site.snapshots.hold(1);
    let Site { quota, snapshots, asked, .. } = &mut site;
    tokio::join!(quota.impose(imposed(Some(60), now), snapshots), async {
        let (_, taken) = asked.recv().await.expect("a question");
        taken.send(Ok(())).expect("somebody waits");
    });
    assert!(site.snapshots.waits_for_control(1));
    assert_eq!(site.tell().await, Some(0));
    assert!(!site.snapshots.waits_for_control(1));
}

#[tokio::test]
async fn a_quarantine_is_owed_also_where_nobody_waits_for_its_answer() {
    let nobody = clawgress_api::socket::channel(Path::new("/nonexistent/clawgress.sock")).expect("channel");
    let quota = Quota::new(nobody).expect("randomness");
    let snapshots = Snapshots::new(Duration::from_secs(60), Arc::new(SystemClock));
    let imposed = imposed(None, Instant::now());
    assert!(quota.impose(imposed.clone(), &snapshots).now_or_never().is_none(), "control takes its time");
    assert_eq!(quota.owed.lock().get(&1).map(|owed| owed.request.clone()), Some("r".to_owned()));
    quota.impose(Imposed { seconds: Some(1), ..imposed }, &snapshots).await;
    assert_eq!(quota.owed.lock().get(&1).map(|owed| owed.seconds), Some(None), "the longer one");
}

/// A client may take its request back while that waits for the second of two limits.
#[tokio::test]
async fn who_takes_back_what_waits_for_one_limit_has_spent_nothing_of_the_other() {
    let nobody = clawgress_api::socket::channel(Path::new("/nonexistent/clawgress.sock")).expect("channel");
    let quota = Quota::new(nobody).expect("randomness");
    let (pace, share) = (Pace { count: 10, period_s: 60, burst: 10 }, Share::Agent);
    let limit = |key| Limit { key, pace, share, over: LimitAction::Pace };
    let ((first, second), subject) = ((limit(1), limit(2)), Arc::<str>::from("default/web"));
    let lease = |limit| quota.lease(limit, &subject).expect("room");
    let (has, waits) = (lease(&first), lease(&second));
    let now = Instant::now();
    let ends = now + Duration::from_secs(600);
    *has.held.lock() = Held { id: 1, granted: 3, left: 3, ends, ..Held::none(now) };
    let left = || has.held.lock().left;
    let both = [(&first, Arc::clone(&subject)), (&second, Arc::clone(&subject))];
    // Somebody else asks for the second at the time.
    let turn = waits.asking.lock().await;
    {
        let mut spending = std::pin::pin!(quota.spend(&both));
        assert!(spending.as_mut().now_or_never().is_none());
        assert_eq!(left(), 2, "it is spent while it waits");
    }
    assert_eq!(left(), 3, "who has left has it back");
    drop(turn);
    // Nobody answers: it is denied, and has it back as well.
    let denied = quota.spend(&both).await.expect_err("nobody grants the second");
    assert_eq!((denied.reason, denied.limit, left()), (DropReason::LimitUnavailable, 1, 3));
    assert_eq!((quota.spend(&both[..1]).await, left()), (Ok(()), 2));
}

/// Control may take its time for each of those that ask before.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_turn_to_ask_longer_than_for_units() {
    let nobody = clawgress_api::socket::channel(Path::new("/nonexistent/clawgress.sock")).expect("channel");
    let quota = Quota::new(nobody).expect("randomness");
    let subject = Arc::<str>::from("default/web");
    let (pace, share) = (Pace { count: 10, period_s: 60, burst: 8 }, Share::Agent);
    for (over, most) in [(LimitAction::Pace, limit::QUOTA_WAIT_MAX), (LimitAction::Drop, limit::QUOTA_CALL)] {
        let limit = Limit { key: 1, pace, share, over };
        let lease = quota.lease(&limit, &subject).expect("room");
        let turn = lease.asking.lock().await;
        let began = tokio::time::Instant::now();
        let limits = [(&limit, Arc::clone(&subject))];
        let denied = tokio::time::timeout(2 * most, quota.spend(&limits)).await.expect("within its bound");
        let denied = denied.expect_err("nobody granted it");
        assert_eq!((denied.reason, denied.retry_after), (DropReason::LimitUnavailable, None), "{over:?}");
        assert!(began.elapsed() <= most + Duration::from_millis(10), "{over:?}: {:?}", began.elapsed());
        assert_eq!(lease.waiting.available_permits(), limit::QUOTA_WAITING_MAX, "its place is free");
        drop(turn);
    }
}
