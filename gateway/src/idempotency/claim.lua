-- Claims a free key, or says what it stands for. The claim, the month's compute units and the
-- content's mark are one step: a replay pays nothing, and what is refused holds nothing.
-- A claim that outlived its gateway is free again, but remembers for as long as answers are kept
-- what was paid: nobody knows whether the request was carried out, and a retry pays no second time.
-- KEYS: the key, the month's quota, the content. ARGV: fingerprint, token, the claim's life in ms,
-- for how long a key is remembered in ms, compute units, most of them in the month (negative: no
-- bound), the quota's life in ms (0: none is counted), whether content is unique, the generation of
-- Redis.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'hash', 'state', 'head', 'body', 'until', 'paid')
local lost = held[2] == 'claimed' and (tonumber(held[5]) or 0) <= now
if held[1] and not lost then
  if held[1] ~= ARGV[1] then return { 'mismatch' } end
  return { held[2] == 'claimed' and 'pending' or held[2], held[3] or '', held[4] or '' }
end
local units, most, counted = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] ~= '0'
local used, known, carried = 0, 1, 0
if counted then
  local quota = redis.call('HMGET', KEYS[2], 'used', 'known')
  used, known = tonumber(quota[1]) or 0, quota[2] == ARGV[9] and 1 or 0
  if lost and held[1] == ARGV[1] and held[6] == KEYS[2] then carried = 1 end
  if carried == 0 and most >= 0 and used + units > most then
    return { 'exhausted', used, known }
  end
end
if ARGV[8] == '1' then
  local first = redis.call('GET', KEYS[3])
  if first then return { 'duplicate', first } end
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
end
if counted then
  if carried == 0 then used = redis.call('HINCRBY', KEYS[2], 'used', units) end
  redis.call('PEXPIRE', KEYS[2], ARGV[7])
end
redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'state', 'claimed', 'token', ARGV[2],
  'until', string.format('%.0f', now + ARGV[3]), 'paid', counted and KEYS[2] or '')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return { 'claimed', used, known, carried }
