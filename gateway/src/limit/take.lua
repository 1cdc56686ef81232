-- Takes up to ARGV[1] tokens from all buckets of a tenant, the same number from each; a negative
-- number gives tokens back. ARGV[2] is when Redis was last found empty or restarted. ARGV[3] to [5]
-- are what the caller saw last of the buckets, and when (0: never); ARGV[6] is what it gave away
-- while it could not ask. Then capacity and tokens a millisecond of each bucket.
-- KEYS: the buckets, the generation.
-- Buckets that are not there, or are those of a time before the caller saw them, are at best as the
-- caller saw them, if that was after Redis was last empty (they were evicted, or Redis has just
-- come back with what it was). Were they flushed, which nobody has noticed yet, they are empty now.
-- Else they were empty when Redis last was, which is full by now unless that was a flush.
-- The time is Redis's own: gateways with clocks that disagree must not mint tokens.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local stored = redis.call('HMGET', KEYS[1], 'at', 'born', 't1', 't2')
-- Another gateway may have noticed before the caller did.
local known = tonumber(redis.call('HGET', KEYS[2], 'born'))
local at, seen = tonumber(stored[1]), tonumber(ARGV[3])
local born = math.max(tonumber(ARGV[2]), known or 0)
if not at and seen > 0 and not known then
  at, stored[3], stored[4] = now, 0, 0
elseif seen > born and (not at or at < seen) then
  at = seen
  stored[3] = math.min(tonumber(stored[3] or ARGV[4]), tonumber(ARGV[4]))
  stored[4] = math.min(tonumber(stored[4] or ARGV[5]), tonumber(ARGV[5]))
elseif not at or tonumber(stored[2]) + 1000 < born then
  -- Or they were made between a flush and its being noticed. A second of slack: who noticed at
  -- once is not emptied again by who noticed later.
  at, stored[3], stored[4] = born, 0, 0
else
  born = math.max(born, tonumber(stored[2]))
end
-- A clock that was set back by more than it drifts: nothing is minted, and nobody locked out.
if at > now + 1000 then at = now end
now = math.max(now, at)
local granted = tonumber(ARGV[1])
local retry, violated, keep = 0, 0, 1000
local tokens, capacities = {}, {}
for i = 1, 2 do
  local capacity, rate = tonumber(ARGV[2 * i + 5]), tonumber(ARGV[2 * i + 6])
  local have = math.min(capacity, tonumber(stored[i + 2]) + (now - at) * rate)
  -- That was given away at no more than the rate, so it empties a bucket and leaves no debt.
  have = math.max(math.min(have, 0), have - tonumber(ARGV[6]))
  if have < 1 then
    violated = violated + 2 ^ (i - 1)
    retry = math.max(retry, math.ceil((1 - have) / rate))
  end
  granted = math.min(granted, math.floor(have))
  -- Once it would be full again, there is nothing to remember.
  keep = math.max(keep, math.ceil(capacity / rate))
  tokens[i], capacities[i] = have, capacity
end
if tonumber(ARGV[1]) > 0 then granted = math.max(granted, 0) end
for i = 1, 2 do
  tokens[i] = math.min(capacities[i], tokens[i] - granted)
end
redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'born', string.format('%.0f', born),
  't1', string.format('%.17g', tokens[1]), 't2', string.format('%.17g', tokens[2]))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep))
return { granted, retry, violated, math.floor(tokens[1]), math.floor(tokens[2]), now }
