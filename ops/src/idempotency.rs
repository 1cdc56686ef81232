//! Idempotency record: `(tenant, key) → request hash, answer, expiry`, written in the transaction
//! that does the thing, so that either both happened or neither did. [`crate::retention`] deletes
//! the expired ones.

use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

/// What a key says about a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// The key was free and is now this request's: do the thing and commit.
    Fresh,
    /// The thing was done before; this is the answer it had.
    Replay(serde_json::Value),
    /// The key belongs to another request.
    Mismatch,
}

/// A request as its idempotency key sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Whose key it is.
    pub tenant: Uuid,
    /// The client's `Idempotency-Key`.
    pub key: &'a str,
    /// SHA-256 of what must be the same for a retry to be one.
    pub hash: [u8; 32],
}

/// Claims the key for this request until `expires_at`, or says what it stands for. A concurrent
/// transaction with the same key is waited for. `answer` must be a pure function of what the
/// transaction writes, since it is what every retry will get.
///
/// # Errors
/// When Postgres fails.
pub async fn claim(
    transaction: &impl GenericClient,
    schema: &str,
    request: Request<'_>,
    answer: &serde_json::Value,
    expires_at: Timestamp,
) -> Result<Claim, tokio_postgres::Error> {
    let Request { tenant, key, hash } = request;
    let insert = format!(
        "-- ops.idempotency_claim\n\
         INSERT INTO {schema}.idempotency_keys AS held\n    \
         (tenant_id, key, request_hash, answer, expires_at)\n\
         VALUES ($1, $2, $3, $4, $5)\n\
         ON CONFLICT (tenant_id, key) DO UPDATE SET request_hash = EXCLUDED.request_hash,\n    \
         answer = EXCLUDED.answer, expires_at = EXCLUDED.expires_at,\n    \
         created_at = clock_timestamp()\n\
         WHERE held.expires_at <= clock_timestamp()"
    );
    let hash = hash.as_slice();
    let inserted = transaction
        .execute(&insert, &[&tenant, &key, &hash, answer, &expires_at])
        .await?;
    if inserted == 1 {
        return Ok(Claim::Fresh);
    }
    let select = format!(
        "-- ops.idempotency_read\n\
         SELECT request_hash, answer FROM {schema}.idempotency_keys\n\
         WHERE tenant_id = $1 AND key = $2"
    );
    let row = transaction.query_one(&select, &[&tenant, &key]).await?;
    Ok(stands_for(&row, hash))
}

/// What a key stands for, if it stands for anything now; claims nothing.
///
/// # Errors
/// When Postgres fails.
pub async fn recall(
    client: &impl GenericClient,
    schema: &str,
    request: Request<'_>,
) -> Result<Option<Claim>, tokio_postgres::Error> {
    let Request { tenant, key, hash } = request;
    let select = format!(
        "-- ops.idempotency_recall\n\
         SELECT request_hash, answer FROM {schema}.idempotency_keys\n\
         WHERE tenant_id = $1 AND key = $2 AND expires_at > clock_timestamp()"
    );
    let row = client.query_opt(&select, &[&tenant, &key]).await?;
    Ok(row.map(|row| stands_for(&row, &hash)))
}

fn stands_for(row: &Row, hash: &[u8]) -> Claim {
    if row.get::<_, &[u8]>(0) == hash {
        Claim::Replay(row.get(1))
    } else {
        Claim::Mismatch
    }
}
