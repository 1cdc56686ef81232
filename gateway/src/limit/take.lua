-- Takes up to ARGV[1] tokens from all buckets of a tenant, the same number from each; a negative
-- number gives tokens back. ARGV[2] is when Redis was last found empty, ARGV[3] whether the buckets
-- must be there because the caller used them a moment ago; then capacity and tokens a millisecond
-- of each bucket. What is not there is full if nobody asked for long, and empty after a flush.
-- The time is Redis's own: gateways with clocks that disagree must not mint tokens.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local stored = redis.call('HMGET', KEYS[1], 'at', 'born', 't1', 't2')
local at, born = tonumber(stored[1]), tonumber(ARGV[2])
if not at and ARGV[3] == '1' then born = now end
-- Another gateway may have filled them before it knew of the flush. A second of slack: the one who
-- noticed at once is not emptied again by the one who noticed later.
local before = at and tonumber(stored[2]) + 1000 < born
if not at or before then
  at, stored[3], stored[4] = born, 0, 0
else
  born = math.max(born, tonumber(stored[2]))
end
now = math.max(now, at)
local granted = tonumber(ARGV[1])
local retry, violated, keep = 0, 0, 1000
local tokens, capacities = {}, {}
for i = 1, 2 do
  local capacity, rate = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
  local have = math.min(capacity, tonumber(stored[i + 2]) + (now - at) * rate)
  if have < 1 then
    violated = violated + 2 ^ (i - 1)
    retry = math.max(retry, math.ceil((1 - have) / rate))
  end
  granted = math.min(granted, math.floor(have))
  -- Once it would be full again, there is nothing to remember.
  keep = math.max(keep, math.ceil(capacity / rate))
  tokens[i], capacities[i] = have, capacity
end
for i = 1, 2 do
  tokens[i] = math.min(capacities[i], tokens[i] - granted)
end
redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'born', string.format('%.0f', born),
  't1', string.format('%.17g', tokens[1]), 't2', string.format('%.17g', tokens[2]))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep))
return { granted, retry, violated, math.floor(tokens[1]), math.floor(tokens[2]) }
